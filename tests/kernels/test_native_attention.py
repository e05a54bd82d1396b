"""The LatentAttention kernel against NumPy and the portable body, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graphs import test_op_int8_cache as int8_cache
from tests.graphs.one_op import Array, OneOpModels, assert_near
from tests.graphs.op_inputs import SCALE, float_inputs, int8_inputs, with_cache
from tests.tolerances import ATTENTION_FORMS

from shoal.graphs.cache_types import CACHE_TYPES
from shoal.graphs.ops.latent_attention import latent_attention
from shoal.graphs.recipes import BLOCK_SIZES

Inputs = dict[str, Array]
NEW = ("q_nope", "q_rope", "latent", "k_rope")


def run(models: OneOpModels, inputs: Inputs) -> list[Array]:
    """y and the parts of the cache, by the op for the cache that is given."""
    if "cache_scales" in inputs:
        return int8_cache.run(models, inputs)
    block_size = inputs["w_uk"].shape[-1] // inputs["w_uk_scales"].shape[-1]
    attributes = {"softmax_scale": SCALE, "block_size": block_size}
    return models.run("LatentAttention", attributes, inputs)


def reference(inputs: Inputs) -> list[Array]:
    if "cache_scales" in inputs:
        return int8_cache.reference(inputs)
    return list(latent_attention(**inputs, softmax_scale=SCALE))


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    t=st.one_of(st.integers(1, 10), st.integers(11, 150)),
    past=st.one_of(st.integers(0, 10), st.integers(100, 300)),
    h=st.integers(1, 5),
    n=st.integers(1, 40),
    r=st.integers(1, 9).map(lambda half: 2 * half),
    v=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_forms_agree(
    models: OneOpModels,
    threaded_models: OneOpModels,
    portable_models: OneOpModels,
    block_size: int,
    cache_type: str,
    t: int,
    past: int,
    h: int,
    n: int,
    r: int,
    v: int,
    seed: int,
) -> None:
    shapes = {"h": h, "n": n, "r": r, "c": block_size, "v": v}
    inputs = float_inputs(seed, t, past + t, **shapes)
    inputs = int8_inputs(with_cache(inputs, cache_type), block_size)
    found, *cache = run(models, inputs)
    threaded = run(threaded_models, inputs)
    expected, *expected_cache = reference(inputs)
    by_body, *body_cache = run(portable_models, inputs)
    assert np.array_equal(threaded[0], found)
    for others in zip(cache, threaded[1:], expected_cache, body_cache, strict=True):
        assert len({part.dtype for part in others}) == 1
        assert all(np.array_equal(others[0], part) for part in others[1:])
    assert_near(found, expected, ATTENTION_FORMS)
    assert_near(found, by_body, ATTENTION_FORMS)


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_a_few_tokens_do_not_depend_on_each_other(models: OneOpModels, cache_type: str) -> None:
    t, past = 16, 300  # more tokens may run in the expanded form
    inputs = with_cache(float_inputs(1, t, past + t, h=3, n=12, r=8, c=64, v=10), cache_type)
    inputs = int8_inputs(inputs, 32)
    together, *cache = run(models, inputs)
    names = [name for name in inputs if name.startswith("cache")]
    for first, count in ((0, 1), (2, 2), (7, 9), (3, 12), (15, 1)):
        part = {name: inputs[name][:, first : first + count] for name in NEW}
        for name, rows in zip(names, cache, strict=True):
            part[name] = rows[:, : past + first + count]
        found = run(models, inputs | part)[0]
        assert np.array_equal(found, together[:, first : first + count])


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("past", [0, 5])
def test_no_new_tokens_leave_the_cache_as_it_is(
    models: OneOpModels, portable_models: OneOpModels, cache_type: str, past: int
) -> None:
    inputs = float_inputs(1, 0, 5, h=3, n=12, r=8, c=64, v=10)
    inputs = int8_inputs(with_cache(inputs, cache_type), 32)
    names = [name for name in inputs if name.startswith("cache")]
    inputs |= {name: inputs[name][:, :past] for name in names}
    for form in (models, portable_models):
        y, *cache = run(form, inputs)
        assert y.shape == (1, 0, 3, 10)
        for name, rows in zip(names, cache, strict=True):
            assert np.array_equal(rows, inputs[name])


def test_every_float16_is_rounded_to_and_read_exactly(models: OneOpModels) -> None:
    """All 63488 finite ones come back, and values between them go to the nearest."""
    codes = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    exact = codes[np.isfinite(codes)].astype(np.float32)
    between = np.concatenate([np.nextafter(exact, np.float32(to)) for to in (-1e9, 0, 1e9)])
    ties = ((exact[1:].astype(np.float64) + exact[:-1]) / 2).astype(np.float32)
    values = np.concatenate([exact, between, ties])
    values = values[np.abs(values) <= 65504]
    t = -(-len(values) // 256)
    inputs = float_inputs(1, t, t, h=1, n=1, r=2, c=256, v=1)
    inputs["latent"] = np.resize(values, inputs["latent"].shape)
    cache = run(models, int8_inputs(with_cache(inputs, "float16"), 32))[1]
    assert np.array_equal(cache[..., :256], inputs["latent"].astype(np.float16))


@pytest.mark.parametrize("width", [1, 5, 16, 33])
def test_a_cached_float16_means_its_value(models: OneOpModels, width: int) -> None:
    """With one cached row, a value of w_uv times that row is what comes out."""
    cached = (np.linspace(-9, 9, 32) ** 5).astype(np.float16)
    inputs = float_inputs(1, 1, 1, h=1, n=1, r=2 * width, c=32, v=32)
    inputs["latent"] = cached.astype(np.float32).reshape(1, 1, 32)
    inputs["w_uv"] = np.eye(32, dtype=np.float32)[None]
    y, _ = run(models, int8_inputs(with_cache(inputs, "float16"), 32))
    assert_near(y.reshape(-1), cached.astype(np.float32), 1e-6)


@pytest.mark.parametrize("t", [1, 6])
def test_an_int8_cache_is_updated_in_place(models: OneOpModels, t: int) -> None:
    int8_cache.check_in_place(
        models, int8_inputs(with_cache(float_inputs(4, t, 21), "int8"), 16), t
    )


@pytest.mark.parametrize("cache_type", ["float32", "float16"])
@pytest.mark.parametrize("t", [1, 6, 9])
def test_the_cache_is_updated_in_place(models: OneOpModels, t: int, cache_type: str) -> None:
    capacity, s = 50, 21
    inputs = int8_inputs(with_cache(float_inputs(4, t, s), cache_type), 32)
    attributes = {"softmax_scale": SCALE, "block_size": 32}
    session = models.open("LatentAttention", attributes, inputs)
    dtype = inputs["cache"].dtype.type
    buffer = np.full((1, capacity, inputs["cache"].shape[-1]), 7, dtype)
    for length in range(s, capacity + 1, t):
        inputs |= {"cache": buffer[:, :length].copy()}
        before = buffer.copy()
        expected, expected_cache = latent_attention(**inputs, softmax_scale=SCALE)
        y = np.empty(expected.shape, np.float32)
        binding = session.io_binding()
        for name in NEW:
            binding.bind_cpu_input(name, inputs[name])
        bind_cache = (dtype, (1, length, buffer.shape[-1]), buffer.ctypes.data)
        binding.bind_input("cache", "cpu", 0, *bind_cache)
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        binding.bind_output("cache_out", "cpu", 0, *bind_cache)
        session.run_with_iobinding(binding)
        assert_near(y, expected, ATTENTION_FORMS)
        assert np.array_equal(buffer[:, :length], expected_cache)
        assert np.array_equal(buffer[:, length:], before[:, length:])


def test_scores_of_any_size_stay_finite(models: OneOpModels) -> None:
    inputs = int8_inputs(float_inputs(3, t=4, s=300), 32)
    inputs["q_nope"] *= 1e4
    expected, _ = latent_attention(**inputs, softmax_scale=SCALE)
    assert_near(run(models, inputs)[0], expected, ATTENTION_FORMS)


def test_future_rows_have_exactly_no_share(models: OneOpModels) -> None:
    inputs = int8_inputs(float_inputs(3, t=12, s=140), 32)
    calm, _ = run(models, inputs)
    for name in ("latent", "k_rope"):
        inputs[name][:, 1:] *= 1000
    wild, _ = run(models, inputs)
    assert np.array_equal(wild[:, 0], calm[:, 0])


def test_a_cache_shorter_than_the_new_tokens_is_refused(models: OneOpModels) -> None:
    inputs = int8_inputs(float_inputs(3, t=4, s=9), 32)
    inputs["cache"] = inputs["cache"][:, :3]
    with pytest.raises(Exception, match="cache: expected at least the 4 new rows, found 3"):
        run(models, inputs)


def test_int8_caches_whose_parts_differ_are_refused(models: OneOpModels) -> None:
    inputs = int8_inputs(with_cache(float_inputs(3, t=4, s=9), "int8"), 32)
    inputs["cache_rope"] = inputs["cache_rope"][:, :8]
    with pytest.raises(Exception, match=r"cache_rope: expected shape \[1,9,8\], found \[1,8,8\]"):
        run(models, inputs)


def test_a_cache_of_another_type_is_refused(models: OneOpModels) -> None:
    inputs = int8_inputs(with_cache(float_inputs(3, t=4, s=9), "float32"), 32)
    inputs["cache"] = inputs["cache"].astype(np.int64)
    with pytest.raises(Exception, match="expected element type"):
        run(models, inputs)
