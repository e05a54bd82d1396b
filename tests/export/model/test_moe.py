"""Routing and experts, on numbers that can be checked by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.export.oracle import V3_SIZES

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.moe import MoE
from shoal.export.model.ops import fake_quantize, sparse_experts
from shoal.export.model.routing import RoutingRule, choose_experts


def rule(**overrides: Any) -> RoutingRule:
    values: dict[str, Any] = {
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "top_k": 2,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
    }
    return RoutingRule(**(values | overrides))


def log_probabilities(*values: float) -> torch.Tensor:
    return torch.tensor([values]).log()


def test_greedy_takes_the_most_probable_experts_and_scales_their_probabilities() -> None:
    logits = log_probabilities(0.1, 0.4, 0.2, 0.3)
    ids, weights = choose_experts(logits, None, rule(routed_scaling_factor=2.0))
    assert ids.tolist() == [[1, 3]]
    torch.testing.assert_close(weights, torch.tensor([[0.8, 0.6]]))


def test_equal_scores_go_to_the_lower_id() -> None:
    ids, _ = choose_experts(torch.zeros(1, 64), None, rule(top_k=5))
    assert ids.tolist() == [[0, 1, 2, 3, 4]]


def test_normalised_weights_sum_to_the_scaling_factor() -> None:
    settings = rule(norm_topk_prob=True, routed_scaling_factor=2.5)
    _, weights = choose_experts(torch.randn(3, 8), None, settings)
    torch.testing.assert_close(weights.sum(-1), torch.full((3,), 2.5))


def test_the_bias_chooses_but_does_not_weigh() -> None:
    settings = rule(scoring_func="sigmoid", topk_method="noaux_tc", top_k=1)
    logits = torch.tensor([[2.0, 0.0]])
    ids, weights = choose_experts(logits, torch.tensor([0.0, 1.0]), settings)
    assert ids.tolist() == [[1]]
    assert weights.tolist() == [[0.5]]


def test_v3_groups_count_with_their_two_best_and_v2_groups_with_their_best() -> None:
    logits = log_probabilities(0.40, 0.01, 0.30, 0.29)  # two groups of two
    groups = {"top_k": 2, "n_group": 2, "topk_group": 1}
    v2, _ = choose_experts(logits, None, rule(topk_method="group_limited_greedy", **groups))
    v3, _ = choose_experts(logits, torch.zeros(4), rule(topk_method="noaux_tc", **groups))
    assert v2.tolist() == [[0, 1]]
    assert v3.tolist() == [[2, 3]]


def test_scores_below_zero_stay_eligible_within_the_chosen_groups() -> None:
    settings = rule(
        scoring_func="sigmoid", topk_method="noaux_tc", top_k=2, n_group=2, topk_group=1
    )
    bias = torch.tensor([-9.0, -9.0, -5.0, -5.0])
    ids, weights = choose_experts(torch.zeros(1, 4), bias, settings)
    assert ids.tolist() == [[2, 3]]
    assert weights.tolist() == [[0.5, 0.5]]


def test_experts_are_weighted_and_summed_and_unused_ones_do_not_matter() -> None:
    """Expert i multiplies by i + 1: up and down are scaled identities, the gate is constant."""
    size, gate = 2, 20.0  # silu(20) is 20 in float32 to within 5e-8
    gate_up = torch.zeros(4, 2 * size, size + 1)
    down = torch.zeros(4, size + 1, size)
    for expert in range(4):
        gate_up[expert, 0::2, size] = gate
        gate_up[expert, 1::2, :size] = torch.eye(size) / gate
        down[expert, :size] = torch.eye(size) * (expert + 1)
    gate_up[3] = float("nan")
    x = torch.tensor([[[3.0, 5.0, 1.0], [7.0, 11.0, 1.0]]])
    ids = torch.tensor([[[0, 2], [2, 1]]])
    weights = torch.tensor([[[1.0, 0.5], [1.0, 2.0]]])
    y = sparse_experts(x, ids, weights, gate_up, down)
    expected = torch.tensor([[[2.5 * 3, 2.5 * 5, 0.0], [7.0 * 7, 7.0 * 11, 0.0]]])
    torch.testing.assert_close(y, expected)


def test_fake_quantization_rounds_to_127_steps_of_each_block() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, 0.0, 0.0, 0.0, 0.0]])
    assert fake_quantize(x, 4).tolist() == [[127.0, 0.0, 2.0, -2.0, 0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("shared", [0, 2])
def test_a_layer_adds_its_shared_experts_to_the_routed_ones(shared: int) -> None:
    raw = {"model_type": "deepseek_v3", **V3_SIZES, "n_shared_experts": shared}
    moe = MoE(ModelConfig.from_hf(raw))
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        y, ids, weights = moe(x)
        expected = moe.experts(x, ids, weights)
        if moe.shared_experts is not None:
            expected = expected + moe.shared_experts(x)
        torch.testing.assert_close(y, expected)
    assert (moe.shared_experts is None) == (shared == 0)
