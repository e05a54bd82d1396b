"""The LatentAttention kernel against NumPy and the portable body, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graphs.one_op import Array, OneOpModels, assert_near
from tests.graphs.op_inputs import SCALE, float_inputs, int8_inputs
from tests.tolerances import ATTENTION_FORMS

from shoal.graphs.ops.latent_attention import latent_attention
from shoal.graphs.recipes import BLOCK_SIZES

Inputs = dict[str, Array]
NEW = ("q_nope", "q_rope", "latent", "k_rope")


def run(models: OneOpModels, inputs: Inputs) -> list[Array]:
    block_size = inputs["w_uk"].shape[-1] // inputs["w_uk_scales"].shape[-1]
    attributes = {"softmax_scale": SCALE, "block_size": block_size}
    return models.run("LatentAttention", attributes, inputs)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@settings(max_examples=8, deadline=None, derandomize=True)
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
    t: int,
    past: int,
    h: int,
    n: int,
    r: int,
    v: int,
    seed: int,
) -> None:
    shapes = {"h": h, "n": n, "r": r, "c": block_size, "v": v}
    inputs = int8_inputs(float_inputs(seed, t, past + t, **shapes), block_size)
    found, cache = run(models, inputs)
    threaded, _ = run(threaded_models, inputs)
    assert np.array_equal(threaded, found)
    expected, expected_cache = latent_attention(**inputs, softmax_scale=SCALE)
    assert np.array_equal(cache, expected_cache)
    assert_near(found, expected, ATTENTION_FORMS)
    by_body, _ = run(portable_models, inputs)
    assert_near(found, by_body, ATTENTION_FORMS)


def test_a_few_tokens_do_not_depend_on_each_other(models: OneOpModels) -> None:
    t, past = 16, 300  # more tokens may run in the expanded form
    inputs = int8_inputs(float_inputs(1, t, past + t, h=3, n=12, r=8, c=64, v=10), 32)
    together, cache = run(models, inputs)
    for first, count in ((0, 1), (2, 2), (7, 9), (3, 12), (15, 1)):
        part = {name: inputs[name][:, first : first + count] for name in NEW}
        part["cache"] = cache[:, : past + first + count]
        found, _ = run(models, inputs | part)
        assert np.array_equal(found, together[:, first : first + count])


@pytest.mark.parametrize("t", [1, 6, 9])
def test_the_cache_is_updated_in_place(models: OneOpModels, t: int) -> None:
    capacity, s = 50, 21
    inputs = int8_inputs(float_inputs(4, t, s), 32)
    attributes = {"softmax_scale": SCALE, "block_size": 32}
    session = models.open("LatentAttention", attributes, inputs)
    buffer = np.full((1, capacity, inputs["cache"].shape[-1]), 7, np.float32)
    for length in range(s, capacity + 1, t):
        inputs |= {"cache": buffer[:, :length].copy()}
        before = buffer.copy()
        expected, expected_cache = latent_attention(**inputs, softmax_scale=SCALE)
        y = np.empty(expected.shape, np.float32)
        binding = session.io_binding()
        for name in NEW:
            binding.bind_cpu_input(name, inputs[name])
        bind_cache = (np.float32, (1, length, buffer.shape[-1]), buffer.ctypes.data)
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
