"""Linear and embedding ops: torch, NumPy and onnxruntime against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graphs.one_op import Array, OneOpModels, assert_near
from tests.tolerances import FLOAT32_SUMS

from shoal.export.model import ops as torch_ops
from shoal.graphs.ops import embedding, linear
from shoal.graphs.quantize import dequantize_blocks, quantize_blocks
from shoal.graphs.recipes import BLOCK_SIZES

pytestmark = pytest.mark.dependencies

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(lead=shapes, k=st.integers(1, 70), n=st.integers(1, 40), seed=st.integers(0, 99))
def test_float_linear_forms_agree(
    models: OneOpModels, lead: tuple[int, ...], k: int, n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*lead, k), np.float32)
    weight = rng.standard_normal((n, k), np.float32)
    expected = linear.float_linear(x, weight)
    (found,) = models.run("FloatLinear", {}, {"x": x, "weight": weight})
    assert_near(found, expected, FLOAT32_SUMS)
    by_torch = torch_ops.linear(torch.from_numpy(x), torch.from_numpy(weight)).numpy()
    assert_near(by_torch, expected, FLOAT32_SUMS)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(lead=shapes, blocks=st.integers(1, 5), n=st.integers(1, 40), seed=st.integers(0, 99))
def test_linear_forms_agree(
    models: OneOpModels, block_size: int, lead: tuple[int, ...], blocks: int, n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    k = blocks * block_size
    x = rng.standard_normal((*lead, k), np.float32)
    codes, scales = quantize_blocks(rng.standard_normal((n, k), np.float32), block_size)
    weight = codes.reshape(n, blocks, block_size)
    expected = linear.linear(x, weight, scales)
    attributes = {"K": k, "N": n, "block_size": block_size}
    inputs: dict[str, Array] = {"x": x, "weight": weight, "weight_scales": scales}
    (found,) = models.run("Linear", attributes, inputs)
    assert_near(found, expected, FLOAT32_SUMS)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(lead=shapes, blocks=st.integers(1, 5), n=st.integers(1, 40), seed=st.integers(0, 99))
def test_precise_linear_forms_agree(
    models: OneOpModels, block_size: int, lead: tuple[int, ...], blocks: int, n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    k = blocks * block_size
    x = rng.standard_normal((*lead, k), np.float32)
    x[..., rng.integers(k)] *= 50  # outliers are what the op is for
    codes, scales = quantize_blocks(rng.standard_normal((n, k), np.float32), block_size)
    weight = codes.reshape(n, blocks, block_size)
    expected = linear.precise_linear(x, weight, scales)
    attributes = {"K": k, "N": n, "block_size": block_size}
    inputs: dict[str, Array] = {"x": x, "weight": weight, "weight_scales": scales}
    (found,) = models.run("PreciseLinear", attributes, inputs)
    floats = dequantize_blocks(codes, scales)
    # A tie of the second term may be rounded either way; its step is 1 / 254 of the first one's.
    tie = np.abs(x).max() / 127 / 254 * np.abs(floats).max()
    assert_near(found, expected, FLOAT32_SUMS, tie)
    rounded = torch_ops.fake_quantize(torch.from_numpy(x), block_size, terms=2)
    by_torch = torch_ops.linear(rounded, torch.from_numpy(floats)).numpy()
    assert_near(by_torch, expected, FLOAT32_SUMS, tie)
    assert_near(found, linear.float_linear(x, floats), FLOAT32_SUMS, k * tie)


def test_precise_linear_loses_a_hundredth_of_what_linear_loses(
    models: OneOpModels, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((9, 256), np.float32)
    x[:, ::64] *= 30
    codes, scales = quantize_blocks(rng.standard_normal((33, 256), np.float32), 64)
    inputs: dict[str, Array] = {"x": x, "weight": codes.reshape(33, 4, 64), "weight_scales": scales}
    exact = linear.float_linear(x, dequantize_blocks(codes, scales))
    errors = [
        np.abs(models.run(op, {"K": 256, "N": 33, "block_size": 64}, inputs)[0] - exact).mean()
        for op in ("Linear", "PreciseLinear")
    ]
    assert errors[1] < errors[0] / 100


@pytest.mark.parametrize("op", ["Linear", "PreciseLinear"])
def test_zeros_and_tiny_values_give_zeros(models: OneOpModels, op: str) -> None:
    x = np.zeros((2, 64), np.float32)
    x[1] = 1e-42  # below the smallest normal float32
    weight = np.full((3, 2, 32), 255, np.uint8)
    inputs: dict[str, Array] = {"x": x, "weight": weight, "weight_scales": np.ones((3, 2), "f")}
    (found,) = models.run(op, {"K": 64, "N": 3, "block_size": 32}, inputs)
    assert (found[0] == 0).all()
    assert (np.abs(found[1]) < 1e-36).all()


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_torch_rounds_activations_as_linear_does(block_size: int, rng: np.random.Generator) -> None:
    k, n = 4 * block_size, 24
    x = rng.standard_normal((6, k), np.float32)
    codes, scales = quantize_blocks(rng.standard_normal((n, k), np.float32), block_size)
    expected = linear.linear(x, codes.reshape(n, 4, block_size), scales)
    rounded = torch_ops.fake_quantize(torch.from_numpy(x), block_size)
    weight = torch.from_numpy(dequantize_blocks(codes, scales))
    assert_near(torch_ops.linear(rounded, weight).numpy(), expected, FLOAT32_SUMS)


def test_linear_of_zeros_is_zero(models: OneOpModels, rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 64), np.float32)
    x[1] = 0
    weight = rng.standard_normal((5, 64), np.float32)
    weight[2], weight[3, :32] = 0, 0
    codes, scales = quantize_blocks(weight, 32)
    inputs: dict[str, Array] = {"x": x, "weight": codes.reshape(5, 2, 32), "weight_scales": scales}
    (found,) = models.run("Linear", {"K": 64, "N": 5, "block_size": 32}, inputs)
    assert (found[1] == 0).all()
    assert (found[:, 2] == 0).all()
    assert_near(found, linear.linear(x, inputs["weight"], scales), FLOAT32_SUMS)


@pytest.mark.parametrize("shape", [(3, 512), (2, 5, 256)])
def test_dequantize_blocks_is_exact(
    models: OneOpModels, rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    codes, scales = quantize_blocks(rng.standard_normal(shape, np.float32), 64)
    inputs: dict[str, Array] = {"codes": codes, "scales": scales}
    (found,) = models.run("DequantizeBlocks", {"block_size": 64}, inputs)
    assert np.array_equal(found, dequantize_blocks(codes, scales))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    lead=shapes,
    block_size=st.sampled_from(BLOCK_SIZES),
    blocks=st.integers(1, 3),
    vocab=st.integers(1, 9),
)
def test_embedding_forms_are_equal(
    models: OneOpModels, lead: tuple[int, ...], block_size: int, blocks: int, vocab: int
) -> None:
    rng = np.random.default_rng(7)
    table = rng.standard_normal((vocab, blocks * block_size), np.float32)
    ids = rng.integers(0, vocab, lead)
    codes, scales = quantize_blocks(table, block_size)
    inputs: dict[str, Array] = {"input_ids": ids, "weight": codes, "weight_scales": scales}
    (found,) = models.run("Embedding", {"block_size": block_size}, inputs)
    assert np.array_equal(found, embedding.embedding(ids, codes, scales))
    (found,) = models.run("FloatEmbedding", {}, {"input_ids": ids, "weight": table})
    assert np.array_equal(found, embedding.float_embedding(ids, table))
    by_torch = torch_ops.embedding(torch.from_numpy(ids), torch.from_numpy(table))
    assert np.array_equal(found, by_torch.numpy())
