"""Latent attention over an int8 cache: NumPy and onnxruntime, and the cache in place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graphs.one_op import Array, OneOpModels, assert_near
from tests.graphs.op_inputs import SCALE, float_inputs, int8_inputs, with_cache
from tests.tolerances import ATTENTION_FORMS

from shoal.graphs.ops.int8_cache import float_latent_attention_int8_cache
from shoal.graphs.ops.latent_attention import float_latent_attention
from shoal.graphs.ops.spec import Attribute
from shoal.graphs.quantize import dequantize_blocks

pytestmark = pytest.mark.dependencies

Inputs = dict[str, Array]
CACHES = ("cache", "cache_scales", "cache_rope")


def attributes_of(inputs: Inputs) -> tuple[str, dict[str, Attribute]]:
    """Name of the op that takes these inputs, and its attributes."""
    size = inputs["latent"].shape[-1]
    attributes: dict[str, Attribute] = {"softmax_scale": SCALE}
    if "w_uk_scales" in inputs:
        attributes["block_size"] = size // inputs["w_uk_scales"].shape[-1]
    attributes["cache_block_size"] = size // inputs["cache_scales"].shape[-1]
    name = "LatentAttentionInt8Cache"
    return ("" if "w_uk_scales" in inputs else "Float") + name, attributes


def run(models: OneOpModels, inputs: Inputs) -> list[Array]:
    return models.run(*attributes_of(inputs), inputs)


def reference(inputs: Inputs) -> list[Array]:
    """y and the three cache outputs, with int8 w_uk and w_uv or float ones."""
    given = dict(inputs)
    for name in ("w_uk", "w_uv"):
        if f"{name}_scales" in given:
            given[name] = dequantize_blocks(given[name], given.pop(f"{name}_scales"))
    y, cache = float_latent_attention_int8_cache(**given, softmax_scale=SCALE)
    return [y, *cache]


def assert_equal_caches(found: list[Array], expected: list[Array]) -> None:
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    t=st.integers(1, 40),
    past=st.integers(0, 50),
    h=st.integers(1, 5),
    n=st.integers(1, 20),
    r=st.integers(1, 8).map(lambda half: 2 * half),
    c=st.integers(1, 9).map(lambda blocks: 16 * blocks),
    v=st.integers(1, 20),
    int8=st.booleans(),
    seed=st.integers(0, 99),
)
def test_forms_agree(
    models: OneOpModels,
    t: int,
    past: int,
    h: int,
    n: int,
    r: int,
    c: int,
    v: int,
    int8: bool,
    seed: int,
) -> None:
    inputs = with_cache(float_inputs(seed, t, past + t, h=h, n=n, r=r, c=c, v=v), "int8")
    if int8:
        inputs = int8_inputs(inputs, 16)
    expected, found = reference(inputs), run(models, inputs)
    assert_near(found[0], expected[0], ATTENTION_FORMS)
    assert_equal_caches(found, expected)


def test_rows_of_zeros_and_of_tiny_values_have_scale_0(models: OneOpModels) -> None:
    inputs = with_cache(float_inputs(1, t=3, s=9), "int8")
    inputs["latent"][:, 0] = 0
    inputs["latent"][:, 1] *= np.float32(1e-39)
    expected, found = reference(inputs), run(models, inputs)
    assert_equal_caches(found, expected)
    assert (found[1][:, -3:-1] == 128).all()
    assert (found[2][:, -3:-1] == 0).all()
    assert_near(found[0], expected[0], ATTENTION_FORMS)


def test_the_error_is_that_of_rounding_the_cache(models: OneOpModels) -> None:
    """With the float cache set to what the int8 one holds, both ops give the same values."""
    inputs = with_cache(float_inputs(2, t=1, s=60), "int8")
    y, codes, scales, ropes = run(models, inputs)
    latents = dequantize_blocks(codes, scales)
    float_cache = np.concatenate([latents, ropes.astype(np.float32)], axis=-1)
    rounded = {name: value for name, value in inputs.items() if name not in CACHES}
    rounded |= {"latent": latents[:, -1:], "k_rope": float_cache[:, -1:, latents.shape[-1] :]}
    expected, _ = float_latent_attention(**rounded, cache=float_cache, softmax_scale=SCALE)
    assert_near(y, expected, ATTENTION_FORMS)


@pytest.mark.parametrize("t", [1, 6])
def test_cache_is_updated_in_place(
    models: OneOpModels, t: int, capfd: pytest.CaptureFixture[str]
) -> None:
    check_in_place(models, with_cache(float_inputs(4, t, 21), "int8"), t)
    assert "TensorScatter" not in capfd.readouterr().err  # onnxruntime warns when it copies


def check_in_place(models: OneOpModels, inputs: Inputs, t: int) -> None:
    """Decode from 21 rows to 50, in buffers that are bound as inputs and outputs."""
    capacity = 50
    session = models.open(*attributes_of(inputs), inputs)
    fill = {"cache": 7, "cache_scales": 0.1, "cache_rope": 0.3}
    buffers = {
        name: np.full((1, capacity, inputs[name].shape[-1]), fill[name], inputs[name].dtype)
        for name in CACHES
    }
    for length in range(21, capacity + 1, t):  # the last steps fill the buffers to the brim
        inputs |= {name: buffer[:, :length].copy() for name, buffer in buffers.items()}
        before = {name: buffer.copy() for name, buffer in buffers.items()}
        expected = reference(inputs)
        y = np.empty(expected[0].shape, np.float32)
        binding = session.io_binding()
        for name in ("q_nope", "q_rope", "latent", "k_rope"):
            binding.bind_cpu_input(name, inputs[name])
        for name, buffer in buffers.items():
            shape = (1, length, buffer.shape[-1])
            place = ("cpu", 0, buffer.dtype.type, shape, buffer.ctypes.data)
            binding.bind_input(name, *place)
            binding.bind_output(f"{name}_out", *place)
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        session.run_with_iobinding(binding)
        assert_near(y, expected[0], ATTENTION_FORMS)
        assert_equal_caches([y, *(b[:, :length] for b in buffers.values())], expected)
        for name, buffer in buffers.items():
            assert np.array_equal(buffer[:, : length - t], before[name][:, : length - t])
            assert np.array_equal(buffer[:, length:], before[name][:, length:])
