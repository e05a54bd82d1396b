"""Latent attention: torch, NumPy and onnxruntime against each other, and the cache in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graphs.one_op import Array, OneOpModels, assert_near
from tests.graphs.op_inputs import SCALE, float_inputs, int8_inputs, with_cache
from tests.tolerances import ATTENTION_FORMS

from shoal.export.model import ops as torch_ops
from shoal.graphs.ops.latent_attention import float_latent_attention, latent_attention
from shoal.graphs.quantize import Floats
from shoal.graphs.recipes import BLOCK_SIZES

pytestmark = pytest.mark.dependencies

torch_attention: Any = torch_ops.latent_attention


def check_float(models: OneOpModels, inputs: dict[str, Array]) -> None:
    expected, expected_cache = float_latent_attention(**inputs, softmax_scale=SCALE)
    found, cache = models.run("FloatLatentAttention", {"softmax_scale": SCALE}, inputs)
    assert_near(found, expected, ATTENTION_FORMS)
    assert np.array_equal(cache, expected_cache)
    if cache.dtype != np.float32:
        return
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    by_torch, torch_cache = torch_attention(*tensors, SCALE)
    assert_near(by_torch.numpy(), expected, ATTENTION_FORMS)
    assert np.array_equal(torch_cache.numpy(), expected_cache)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    t=st.integers(1, 40),
    past=st.integers(0, 50),
    h=st.integers(1, 5),
    n=st.integers(1, 20),
    r=st.integers(1, 8).map(lambda half: 2 * half),
    c=st.integers(1, 40),
    v=st.integers(1, 20),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_float_forms_agree(
    models: OneOpModels,
    t: int,
    past: int,
    h: int,
    n: int,
    r: int,
    c: int,
    v: int,
    half: bool,
    seed: int,
) -> None:
    inputs = float_inputs(seed, t, past + t, h=h, n=n, r=r, c=c, v=v)
    check_float(models, with_cache(inputs, "float16" if half else "float32"))


@pytest.mark.parametrize("cache_type", ["float32", "float16"])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize(("t", "s"), [(1, 1), (1, 33), (5, 37), (16, 16)])
def test_int8_forms_agree(
    models: OneOpModels, block_size: int, t: int, s: int, cache_type: str
) -> None:
    inputs = int8_inputs(float_inputs(5, t, s, c=block_size), block_size)
    inputs = with_cache(inputs, cache_type)
    expected, expected_cache = latent_attention(**inputs, softmax_scale=SCALE)
    attributes = {"softmax_scale": SCALE, "block_size": block_size}
    found, cache = models.run("LatentAttention", attributes, inputs)
    assert_near(found, expected, ATTENTION_FORMS)
    assert np.array_equal(cache, expected_cache)


def test_future_rows_have_exactly_no_share(models: OneOpModels) -> None:
    inputs = float_inputs(3, t=4, s=9)
    calm, _ = models.run("FloatLatentAttention", {"softmax_scale": SCALE}, inputs)
    for name in ("latent", "k_rope"):
        inputs[name][:, 1:] *= 1000
    wild, _ = models.run("FloatLatentAttention", {"softmax_scale": SCALE}, inputs)
    assert np.array_equal(wild[:, 0], calm[:, 0])


def test_scores_of_any_size_stay_finite(models: OneOpModels) -> None:
    inputs = float_inputs(3, t=4, s=9)
    inputs["q_nope"] *= 1e4
    check_float(models, inputs)


@pytest.mark.parametrize("cache_type", ["float32", "float16"])
@pytest.mark.parametrize("t", [1, 6])
def test_cache_is_updated_in_place(
    models: OneOpModels, t: int, cache_type: str, capfd: pytest.CaptureFixture[str]
) -> None:
    capacity, s = 50, 21
    inputs = with_cache(float_inputs(4, t, s), cache_type)
    dtype = inputs["cache"].dtype.type
    session = models.open("FloatLatentAttention", {"softmax_scale": SCALE}, inputs)
    buffer = np.full((1, capacity, inputs["cache"].shape[-1]), 7, dtype)
    capfd.readouterr()
    for length in range(s, capacity + 1, t):  # the last steps fill the buffer to the brim
        inputs |= {"cache": buffer[:, :length].copy()}
        before = buffer.copy()
        expected, expected_cache = float_latent_attention(**inputs, softmax_scale=SCALE)
        y = np.empty(expected.shape, np.float32)
        binding = session.io_binding()
        for name in ("q_nope", "q_rope", "latent", "k_rope"):
            binding.bind_cpu_input(name, inputs[name])
        bind_cache = (dtype, (1, length, buffer.shape[-1]), buffer.ctypes.data)
        binding.bind_input("cache", "cpu", 0, *bind_cache)
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        binding.bind_output("cache_out", "cpu", 0, *bind_cache)
        session.run_with_iobinding(binding)
        assert_near(y, expected, ATTENTION_FORMS)
        assert np.array_equal(buffer[:, :length], expected_cache)
        assert np.array_equal(buffer[:, : length - t], before[:, : length - t])
        assert np.array_equal(buffer[:, length:], before[:, length:])
    assert "TensorScatter" not in capfd.readouterr().err  # onnxruntime warns when it copies


def test_token_by_token_equals_all_at_once(models: OneOpModels) -> None:
    inputs = float_inputs(6, t=7, s=7)
    session = models.open("FloatLatentAttention", {"softmax_scale": SCALE}, inputs)
    new = {name: inputs[name] for name in ("q_nope", "q_rope", "latent", "k_rope")}
    together, _ = session.run(None, new | {"cache": inputs["cache"]})
    cache: Floats = np.zeros((1, 0, 40), np.float32)
    for i in range(7):
        room = np.concatenate([cache, np.zeros((1, 1, 40), np.float32)], axis=1)
        step = {name: value[:, i : i + 1] for name, value in new.items()}
        y, cache = session.run(None, step | {"cache": room})
        assert_near(y, together[:, i : i + 1], ATTENTION_FORMS)


def test_int8_weights_are_not_copied(models: OneOpModels, tmp_path: Path) -> None:
    inputs = int8_inputs(float_inputs(1, 1, 8), 16)
    optimized = tmp_path / "optimized.onnx"
    attributes = {"softmax_scale": SCALE, "block_size": 16}
    models.open("LatentAttention", attributes, inputs, optimized)
    graph = onnx.load(optimized, load_external_data=False).graph
    readers = [node.op_type for node in graph.node if {"w_uk", "w_uv"} & set(node.input)]
    assert readers == ["GatherBlockQuantized"] * 2
    own = [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    assert max(np.prod(t.dims) for t in own) < 16
