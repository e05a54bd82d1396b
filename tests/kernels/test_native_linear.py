"""The Linear and PreciseLinear kernels against NumPy and their bodies, on every instruction set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graphs.one_op import Array, Arrays, OneOpModels, assert_near
from tests.kernels.isas import BODIES_ROUND_ALIKE
from tests.tolerances import FLOAT32_SUMS

from shoal.graphs.ops.linear import float_linear, linear, precise_linear
from shoal.graphs.quantize import dequantize_blocks, quantize_blocks
from shoal.graphs.recipes import BLOCK_SIZES
from shoal.runtime.kernels.library import KernelLibrary

Inputs = dict[str, Array]


def make_inputs(seed: int, tokens: int, blocks: int, n: int, block_size: int) -> Inputs:
    rng = np.random.default_rng(seed)
    k = blocks * block_size
    codes, scales = quantize_blocks(rng.standard_normal((n, k), np.float32), block_size)
    x = rng.standard_normal((tokens, k), np.float32) * np.float32(10.0 ** rng.integers(-3, 4))
    return {"x": x, "weight": codes.reshape(n, blocks, block_size), "weight_scales": scales}


def run(models: OneOpModels, inputs: Arrays, op: str = "Linear") -> Array:
    n, blocks, block_size = inputs["weight"].shape
    attributes = {"K": blocks * block_size, "N": n, "block_size": block_size}
    (y,) = models.run(op, attributes, inputs)
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
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    tokens=st.one_of(st.integers(0, 9), st.integers(10, 70)),
    blocks=st.integers(1, 5),
    n=st.one_of(st.integers(1, 40), st.integers(60, 300)),
    seed=st.integers(0, 99),
)
def test_precise_forms_agree(
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
    found = run(models, inputs, "PreciseLinear")
    assert np.array_equal(run(threaded_models, inputs, "PreciseLinear"), found)
    if tokens == 0:
        assert found.shape == (0, n)
        return
    # A tie of the second term may be rounded either way; its step is 1 / 254 of the first one's.
    floats = dequantize_blocks(inputs["weight"].reshape(n, -1), inputs["weight_scales"])
    tie = np.abs(inputs["x"]).max() / 127 / 254 * np.abs(floats).max()
    assert_near(found, precise_linear(**inputs), FLOAT32_SUMS, tie)
    assert_near(found, float_linear(inputs["x"], floats), FLOAT32_SUMS, len(floats[0]) * tie)
    if BODIES_ROUND_ALIKE:
        assert_near(found, run(portable_models, inputs, "PreciseLinear"), FLOAT32_SUMS, tie)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("op", ["Linear", "PreciseLinear"])
def test_a_row_does_not_depend_on_the_rows_beside_it(
    models: OneOpModels, op: str, block_size: int
) -> None:
    inputs = make_inputs(3, tokens=41, blocks=3, n=70, block_size=block_size)
    together = run(models, inputs, op)
    for first, count in ((0, 1), (5, 2), (7, 8), (20, 21)):
        part = inputs | {"x": inputs["x"][first : first + count]}
        assert np.array_equal(run(models, part, op), together[first : first + count])


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("op", ["Linear", "PreciseLinear"])
def test_instruction_sets_give_equal_bits(
    library: KernelLibrary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    op: str,
    block_size: int,
) -> None:
    inputs = make_inputs(4, tokens=37, blocks=5, n=77, block_size=block_size)
    results = []
    for isa in library.isas:
        monkeypatch.setenv("SHOAL_ISA", isa)
        (tmp_path / isa).mkdir()
        results.append(run(OneOpModels(tmp_path / isa, library.path), inputs, op))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_all_leading_dimensions_are_kept(models: OneOpModels) -> None:
    inputs = make_inputs(5, tokens=6, blocks=2, n=10, block_size=32)
    flat = run(models, inputs)
    folded = run(models, inputs | {"x": inputs["x"].reshape(2, 3, 64)})
    assert np.array_equal(folded, flat.reshape(2, 3, 10))


@pytest.mark.parametrize("shift", [1, 3, 4])
def test_no_address_has_to_be_aligned_for_vectors(models: OneOpModels, shift: int) -> None:
    inputs = make_inputs(9, tokens=17, blocks=3, n=21, block_size=32)
    expected = run(models, inputs)
    attributes = {"K": 96, "N": 21, "block_size": 32}
    session = models.open("Linear", attributes, inputs, first_byte=4 * shift)
    floats = np.zeros(inputs["x"].size + 16, np.float32)
    odd = 1 + (-floats.ctypes.data // 4) % 16  # one float past a cache line
    x = floats[odd : odd + inputs["x"].size].reshape(inputs["x"].shape)
    x[:] = inputs["x"]
    y = np.zeros(expected.size + 1, np.float32)[1:].reshape(expected.shape)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    session.run_with_iobinding(binding)
    assert np.array_equal(y, expected)


def test_a_second_run_gives_the_same_bits(threaded_models: OneOpModels) -> None:
    inputs = make_inputs(10, tokens=50, blocks=4, n=333, block_size=64)
    attributes = {"K": 256, "N": 333, "block_size": 64}
    session = threaded_models.open("Linear", attributes, inputs)
    first = session.run(None, {"x": inputs["x"]})[0]
    assert all(np.array_equal(session.run(None, {"x": inputs["x"]})[0], first) for _ in range(9))


# Opens models that differ in the size of the weight, runs each, and prints how much anonymous
# memory that took.
GROWTH = """
import sys
from pathlib import Path
from shoal.runtime.machine.memory import read_resident
from tests.graphs.one_op import OneOpModels
from tests.kernels.test_native_linear import make_inputs
models = OneOpModels(Path(sys.argv[2]), Path(sys.argv[1]))
for n in (64, 64, 32768):
    inputs = make_inputs(1, 1, 8, n, 128)
    session = models.open("Linear", {"K": 1024, "N": n, "block_size": 128}, inputs)
    before = read_resident().anonymous_bytes
    session = models.open("Linear", {"K": 1024, "N": n, "block_size": 128}, inputs)
    session.run(None, {"x": inputs["x"]})
    print(read_resident().anonymous_bytes - before)
"""


def test_anonymous_memory_does_not_grow_with_the_weights(
    library: KernelLibrary, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", GROWTH, str(library.path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, small, large = map(int, done.stdout.split())
    assert large - small < 4_000_000, f"{small} and {large} bytes for 64 kB and 34 MB of weights"


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
