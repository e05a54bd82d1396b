"""Sparse experts: torch, NumPy and onnxruntime against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graphs.one_op import Array, OneOpModels, assert_near
from tests.graphs.op_inputs import E, choose, grid, tie_bound, with_no_expert
from tests.tolerances import FLOAT32_SUMS
from torch import Tensor

from shoal.export.model import ops as torch_ops
from shoal.graphs.ops.sparse_experts import float_sparse_experts, sparse_experts
from shoal.graphs.quantize import dequantize_blocks, quantize_blocks
from shoal.graphs.recipes import BLOCK_SIZES

pytestmark = pytest.mark.dependencies

torch_experts: Any = torch_ops.sparse_experts


def check_forms(
    models: OneOpModels,
    rng: np.random.Generator,
    chosen: dict[str, Array],
    block_size: int = 16,
    *,
    with_no_expert: bool = False,
) -> None:
    """Compare the three forms of both ops, over random weights of E experts."""
    num_experts = max(E, int(chosen["expert_ids"].max()) + (0 if with_no_expert else 1))
    d, f, lead = 2 * block_size, 3 * block_size, chosen["expert_ids"].shape[:-1]
    x = grid(rng, (*lead, d), block_size)
    gate_up = rng.standard_normal((num_experts, 2 * f, d), np.float32) * np.float32(1 / d)
    down = rng.standard_normal((num_experts, d, f), np.float32)
    check_float(models, {"x": x, **chosen, "gate_up": gate_up, "down": down})
    weights: dict[str, Array] = {}
    weights["gate_up"], weights["gate_up_scales"] = quantize_blocks(gate_up, block_size)
    weights["down"], weights["down_scales"] = quantize_blocks(down, block_size)
    check_int8(models, {"x": x, **chosen, **weights}, block_size)


def check_float(models: OneOpModels, inputs: dict[str, Array]) -> None:
    expected = float_sparse_experts(**inputs)
    attributes = {"num_experts_per_tok": inputs["expert_ids"].shape[-1]}
    (found,) = models.run("FloatSparseExperts", attributes, inputs)
    assert_near(found, expected, FLOAT32_SUMS)
    by_torch = torch_experts(*(torch.from_numpy(value) for value in inputs.values()))
    assert_near(by_torch.numpy(), expected, FLOAT32_SUMS)


def check_int8(models: OneOpModels, inputs: dict[str, Array], block_size: int) -> None:
    expected = sparse_experts(**inputs)
    bound = tie_bound(**inputs)
    attributes = {
        "num_experts_per_tok": inputs["expert_ids"].shape[-1],
        "block_size": block_size,
    }
    (found,) = models.run("SparseExperts", attributes, inputs)
    assert_near(found, expected, FLOAT32_SUMS, bound)
    floats: list[Array] = [inputs[name] for name in ("x", "expert_ids", "expert_weights")]
    floats += [dequantize_blocks(inputs[n], inputs[f"{n}_scales"]) for n in ("gate_up", "down")]
    x, ids, weights, gate_up, down = (torch.from_numpy(value) for value in floats)
    by_torch = rounded_experts(x, ids, weights, gate_up, down, block_size)
    assert_near(by_torch.numpy(), expected, FLOAT32_SUMS, bound)


def rounded_experts(
    x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, block_size: int
) -> Tensor:
    """The experts in torch, with the inputs of both products rounded as the int8 op does."""
    x_TD, ids_TK, weights_TK = (part.flatten(0, -2) for part in (x, ids, weights))
    y_TD = torch.zeros_like(x_TD)
    for expert in range(len(gate_up)):
        token, choice = torch.where(ids_TK == expert)
        both = torch_ops.fake_quantize(x_TD[token], block_size) @ gate_up[expert].T
        inner = torch.nn.functional.silu(both[:, 0::2]) * both[:, 1::2]
        out = torch_ops.fake_quantize(inner, block_size) @ down[expert].T
        y_TD.index_add_(0, token, out * weights_TK[token, choice, None])
    return y_TD.view_as(x)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("lead", [(1,), (1, 1), (1, 7), (2, 3)])
def test_forms_agree(
    models: OneOpModels, rng: np.random.Generator, block_size: int, lead: tuple[int, ...]
) -> None:
    check_forms(models, rng, choose(rng, lead), block_size)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    num_tokens=st.integers(1, 20),
    num_experts=st.integers(1, 9),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_forms_agree_for_any_choice(
    models: OneOpModels, num_tokens: int, num_experts: int, data: st.DataObject, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    num_chosen = data.draw(st.integers(1, num_experts))
    check_forms(models, rng, choose(rng, (num_tokens,), num_experts, num_chosen))


def test_all_tokens_on_one_expert(models: OneOpModels, rng: np.random.Generator) -> None:
    ids = np.full((13, 1), 4)
    check_forms(models, rng, {"expert_ids": ids, "expert_weights": rng.random((13, 1), np.float32)})


def test_experts_that_nobody_chose(models: OneOpModels, rng: np.random.Generator) -> None:
    ids = np.tile(np.array([[5, 2]]), (4, 1))
    check_forms(models, rng, {"expert_ids": ids, "expert_weights": rng.random((4, 2), np.float32)})


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_the_id_after_the_last_is_no_expert(
    models: OneOpModels, rng: np.random.Generator, tokens: int, share: float
) -> None:
    chosen = with_no_expert(rng, choose(rng, (tokens,)), share)
    check_forms(models, rng, chosen, with_no_expert=True)


def test_all_experts_chosen(models: OneOpModels, rng: np.random.Generator) -> None:
    check_forms(models, rng, choose(rng, (5,), num_chosen=E))


def test_weights_of_any_size(models: OneOpModels, rng: np.random.Generator) -> None:
    chosen = choose(rng, (4,))
    chosen["expert_weights"] = np.array(
        [[1, 0, 0.5], [1e-12, 3, 1e-5], [16, 16, 16], [0, 0, 0]], np.float32
    )
    check_forms(models, rng, chosen)


def test_hand_computed_expert(models: OneOpModels) -> None:
    # Expert e multiplies silu(20) * 20 = 400 by e + 1, so 0.5 * 1 + 0.25 * 3 gives 500.
    x = np.full((1, 16), 20, np.float32)
    gate_up = np.zeros((3, 32, 16), np.float32)
    gate_up[:, np.arange(32), np.arange(32) // 2] = 1
    down = np.stack([np.eye(16, dtype=np.float32) * (e + 1) for e in range(3)])
    chosen = {"expert_ids": np.array([[0, 2]]), "expert_weights": np.array([[0.5, 0.25]], "f")}
    inputs = {"x": x, **chosen, "gate_up": gate_up, "down": down}
    (found,) = models.run("FloatSparseExperts", {"num_experts_per_tok": 2}, inputs)
    assert_near(found, np.full((1, 16), 500, np.float32), FLOAT32_SUMS)


def test_large_activations_are_not_clipped(models: OneOpModels, rng: np.random.Generator) -> None:
    x = grid(rng, (3, 32), 16) * 1024
    gate_up = rng.standard_normal((E, 64, 32), np.float32)
    down = rng.standard_normal((E, 32, 32), np.float32)
    check_float(models, {"x": x, **choose(rng, (3,)), "gate_up": gate_up, "down": down})
    codes, scales = quantize_blocks(gate_up, 16)
    down_codes, down_scales = quantize_blocks(down, 16)
    weights: dict[str, Array] = {"gate_up": codes, "gate_up_scales": scales}
    weights |= {"down": down_codes, "down_scales": down_scales}
    check_int8(models, {"x": x, **choose(rng, (3,)), **weights}, 16)
