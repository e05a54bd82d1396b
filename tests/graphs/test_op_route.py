"""Route: torch, NumPy and onnxruntime choose the same experts, ties and all."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.graphs.one_op import OneOpModels, assert_near
from tests.tolerances import FLOAT32_SUMS

from shoal.export.model import ops as torch_ops
from shoal.export.model.routing import RoutingRule
from shoal.graphs.ops.route import RouteSettings, route
from shoal.graphs.quantize import Floats

pytestmark = pytest.mark.dependencies

V3 = RouteSettings(
    scoring_func="sigmoid",
    topk_method="noaux_tc",
    top_k=4,
    n_group=4,
    topk_group=2,
    norm_topk_prob=1,
    routed_scaling_factor=2.5,
)
V2 = replace(V3, scoring_func="softmax", topk_method="group_limited_greedy", norm_topk_prob=0)
V2_LITE = replace(V2, topk_method="greedy", n_group=1, topk_group=1, routed_scaling_factor=1.0)
METHODS = {"V3": V3, "V2": V2, "V2-Lite": V2_LITE}


def check_forms(
    models: OneOpModels, logits: Floats, bias: Floats | None, rule: RouteSettings
) -> tuple[NDArray[np.int64], Floats]:
    """Run the three forms, compare them, return ids and weights."""
    ids, weights = route(logits, bias, rule)
    assert ids.dtype == np.int64
    inputs = {"logits": logits} if bias is None else {"logits": logits, "bias": bias}
    found_ids, found_weights = models.run("Route", asdict(rule), inputs)
    assert np.array_equal(found_ids, ids)
    assert_near(found_weights, weights, FLOAT32_SUMS)
    torch_rule = RoutingRule(**asdict(rule) | {"norm_topk_prob": bool(rule.norm_topk_prob)})
    torch_bias = None if bias is None else torch.from_numpy(bias)
    torch_ids, torch_weights = torch_ops.route(torch.from_numpy(logits), torch_bias, torch_rule)
    assert np.array_equal(torch_ids.numpy(), ids)
    assert_near(torch_weights.numpy(), weights, FLOAT32_SUMS)
    return ids, weights


@st.composite
def rules(draw: st.DrawFn) -> tuple[RouteSettings, int]:
    """Settings and a number of experts that fits them; top_k may be all kept experts."""
    method = draw(st.sampled_from(["greedy", "group_limited_greedy", "noaux_tc"]))
    n_group = draw(st.integers(1, 5))
    group_size = draw(st.integers(2, 7))
    topk_group = draw(st.integers(1, n_group))
    kept = n_group * group_size if method == "greedy" else topk_group * group_size
    rule = RouteSettings(
        scoring_func=draw(st.sampled_from(["softmax", "sigmoid"])),
        topk_method=method,
        top_k=draw(st.integers(1, kept)),
        n_group=n_group,
        topk_group=topk_group,
        norm_topk_prob=draw(st.integers(0, 1)),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5, 16.0])),
    )
    return rule, n_group * group_size


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    case=rules(),
    lead=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    seed=st.integers(0, 999),
)
def test_route_forms_agree(
    models: OneOpModels, case: tuple[RouteSettings, int], lead: list[int], seed: int
) -> None:
    rule, num_experts = case
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((*lead, num_experts), np.float32)
    bias = rng.standard_normal(num_experts, np.float32) if rule.is_biased else None
    check_forms(models, logits, bias, rule)


@pytest.mark.parametrize("method", METHODS)
def test_equal_scores_go_to_the_lower_id(models: OneOpModels, method: str) -> None:
    rule = METHODS[method]
    bias = np.zeros(40, np.float32) if rule.is_biased else None
    ids, _ = check_forms(models, np.full((3, 40), 0.3, np.float32), bias, rule)
    assert ids.tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("method", METHODS)
def test_ties_among_few_values_agree(
    models: OneOpModels, method: str, rng: np.random.Generator
) -> None:
    # 40 experts with three different logits: groups tie as well as experts.
    logits = rng.choice(np.array([-0.5, 0.25, 1.0], np.float32), (50, 40))
    bias = None
    if METHODS[method].is_biased:
        bias = rng.choice(np.array([0.0, 0.125], np.float32), 40)
    check_forms(models, logits, bias, METHODS[method])


def test_weights_carry_no_bias(models: OneOpModels) -> None:
    logits = np.zeros((1, 8), np.float32)
    bias = np.array([0, 0, 0, 0, 0, 0, 5, 7], np.float32)
    rule = replace(V3, top_k=2, norm_topk_prob=0, routed_scaling_factor=1.0)
    ids, weights = check_forms(models, logits, bias, rule)
    assert ids.tolist() == [[7, 6]]
    assert weights.tolist() == [[0.5, 0.5]]


def test_group_of_two_good_experts_beats_the_single_best(models: OneOpModels) -> None:
    # Sum of two: 1.4 beats 1.0; best of group: 0.9 beats 0.7.
    scores = np.array([[0.9, 0.1, 0.7, 0.7]], np.float32)
    logits = np.log(scores / (1 - scores))
    rule = replace(V3, top_k=2, n_group=2, topk_group=1)
    ids, _ = check_forms(models, logits, np.zeros(4, np.float32), rule)
    assert sorted(ids[0]) == [2, 3]
    ids, _ = check_forms(models, logits, None, replace(V2, top_k=2, n_group=2, topk_group=1))
    assert sorted(ids[0]) == [0, 1]


def test_scores_of_tiny_and_huge_logits_are_exact(models: OneOpModels) -> None:
    logits = np.array([[-20, -40, -80, 90, 30, -19, 0, -300]], np.float32)
    rule = replace(V3, top_k=8, n_group=1, topk_group=1, norm_topk_prob=0)
    ids, weights = check_forms(models, logits, np.zeros(8, np.float32), rule)
    scores = 2.5 / (1 + np.exp(-logits[0].astype(np.float64)))
    expected = scores.astype(np.float32)[ids[0]]
    assert np.allclose(weights[0], expected, rtol=FLOAT32_SUMS, atol=0)
    inputs = {"logits": logits, "bias": np.zeros(8, np.float32)}
    _, found = models.run("Route", asdict(rule), inputs)
    assert np.allclose(found[0], expected, rtol=FLOAT32_SUMS, atol=0)


def test_masked_experts_of_greedy_groups_weigh_nothing(models: OneOpModels) -> None:
    # Group 0 wins; its second expert scores exactly 0, as do the masked ones.
    logits = np.array([[0, -200, -1, -1]], np.float32)
    rule = replace(V2, top_k=2, n_group=2, topk_group=1)
    ids, weights = check_forms(models, logits, None, rule)
    assert ids.tolist() == [[0, 1]]
    assert weights[0, 1] == 0


def test_bias_goes_with_its_method_only() -> None:
    with pytest.raises(ValueError, match="noaux_tc"):
        route(np.zeros((1, 8), np.float32), np.zeros(8, np.float32), V2)
    with pytest.raises(ValueError, match="noaux_tc"):
        route(np.zeros((1, 8), np.float32), None, V3)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="no method"):
        replace(V3, topk_method="random")
