"""The Linear kernel against NumPy and the portable body, on every instruction set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graphs.one_op import Array, Arrays, OneOpModels, assert_near
from tests.kernels.isas import BODIES_ROUND_ALIKE
from tests.tolerances import FLOAT32_SUMS

from shoal.graphs.ops.linear import linear
from shoal.graphs.quantize import BLOCK_SIZES, quantize_blocks
from shoal.runtime.kernels.library import KernelLibrary

Inputs = dict[str, Array]


def make_inputs(seed: int, tokens: int, blocks: int, n: int, block_size: int) -> Inputs:
    rng = np.random.default_rng(seed)
    k = blocks * block_size
    codes, scales = quantize_blocks(rng.standard_normal((n, k), np.float32), block_size)
    x = rng.standard_normal((tokens, k), np.float32) * np.float32(10.0 ** rng.integers(-3, 4))
    return {"x": x, "weight": codes.reshape(n, blocks, block_size), "weight_scales": scales}


def run(models: OneOpModels, inputs: Arrays) -> Array:
    n, blocks, block_size = inputs["weight"].shape
    attributes = {"K": blocks * block_size, "N": n, "block_size": block_size}
    (y,) = models.run("Linear", attributes, inputs)
    return y


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    tokens=st.one_of(st.integers(0, 9), st.integers(10, 70)),
    blocks=st.integers(1, 5),
    n=st.one_of(st.integers(1, 40), st.integers(60, 300)),
    seed=st.integers(0, 99),
)
def test_forms_agree(
    models: OneOpModels,
    threaded_models: OneOpModels,
    portable_models: OneOpModels,
    block_size: int,
    tokens: int,
    blocks: int,
    n: int,
    seed: int,
) -> None:
    inputs = make_inputs(seed, tokens, blocks, n, block_size)
    found = run(models, inputs)
    assert np.array_equal(run(threaded_models, inputs), found)
    if tokens == 0:
        assert found.shape == (0, n)
        return
    assert_near(found, linear(**inputs), FLOAT32_SUMS)
    if BODIES_ROUND_ALIKE:
        assert_near(found, run(portable_models, inputs), FLOAT32_SUMS)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_a_row_does_not_depend_on_the_rows_beside_it(models: OneOpModels, block_size: int) -> None:
    inputs = make_inputs(3, tokens=41, blocks=3, n=70, block_size=block_size)
    together = run(models, inputs)
    for first, count in ((0, 1), (5, 2), (7, 8), (20, 21)):
        part = inputs | {"x": inputs["x"][first : first + count]}
        assert np.array_equal(run(models, part), together[first : first + count])


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_instruction_sets_give_equal_bits(
    library: KernelLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_size: int
) -> None:
    inputs = make_inputs(4, tokens=37, blocks=5, n=77, block_size=block_size)
    results = []
    for isa in library.isas:
        monkeypatch.setenv("SHOAL_ISA", isa)
        (tmp_path / isa).mkdir()
        results.append(run(OneOpModels(tmp_path / isa, library.path), inputs))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_all_leading_dimensions_are_kept(models: OneOpModels) -> None:
    inputs = make_inputs(5, tokens=6, blocks=2, n=10, block_size=32)
    flat = run(models, inputs)
    folded = run(models, inputs | {"x": inputs["x"].reshape(2, 3, 64)})
    assert np.array_equal(folded, flat.reshape(2, 3, 10))


def test_zeros_stay_zero(models: OneOpModels) -> None:
    inputs = make_inputs(6, tokens=3, blocks=2, n=9, block_size=16)
    inputs["x"][1] = 0
    inputs["x"][2] = 1e-42  # too small for a scale
    assert (run(models, inputs)[1:] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_spoils_its_own_row_only(
    models: OneOpModels, bad: float
) -> None:
    inputs = make_inputs(7, tokens=20, blocks=2, n=9, block_size=64)
    good = run(models, inputs)
    inputs["x"][4, 70] = bad
    found = run(models, inputs)
    assert np.isnan(found[4]).all()
    assert np.array_equal(np.delete(found, 4, axis=0), np.delete(good, 4, axis=0))


def test_extreme_codes_do_not_overflow(models: OneOpModels) -> None:
    # 0 is never written by the exporter, but a damaged file may hold it.
    for code in (0, 1, 255):
        inputs = make_inputs(8, tokens=3, blocks=2, n=8, block_size=256)
        inputs["weight"][:] = code
        inputs["x"] = np.where(np.arange(512) % 3 > 0, 1, -1).astype(np.float32) * np.ones(
            (3, 1), "f"
        )
        assert_near(run(models, inputs), linear(**inputs), FLOAT32_SUMS)
