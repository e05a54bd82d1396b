"""int8 maths: round trips, bounds and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shoal.graphs.errors import ExportError
from shoal.graphs.quantize import (
    Floats,
    block_size_for,
    dequantize_blocks,
    largest_error,
    quantize_activations,
    quantize_blocks,
    quantize_nibbles,
    unpack_nibbles,
)
from shoal.graphs.recipes import BLOCK_SIZES

finite = st.floats(-(2.0**127), 2.0**127, width=32)


@st.composite
def matrices(draw: st.DrawFn, elements: st.SearchStrategy[float] = finite) -> tuple[Floats, int]:
    """A float32 matrix of any magnitude and a block size that divides its rows."""
    block_size = draw(st.sampled_from(BLOCK_SIZES))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)) * block_size)
    return draw(hnp.arrays(np.float32, shape, elements=elements)), block_size


@settings(deadline=None, derandomize=True)
@given(matrices())
def test_error_stays_within_the_bound(case: tuple[Floats, int]) -> None:
    weight, block_size = case
    codes, scales = quantize_blocks(weight, block_size)
    assert codes.min() >= 1
    assert np.isfinite(scales).all()
    error = np.abs(weight.astype(np.float64) - dequantize_blocks(codes, scales))
    bound = np.repeat(largest_error(scales).astype(np.float64), block_size, axis=-1)
    assert (error <= bound).all()


@settings(deadline=None, derandomize=True)
@given(matrices())
def test_second_quantization_changes_no_code(case: tuple[Floats, int]) -> None:
    weight, block_size = case
    codes, scales = quantize_blocks(weight, block_size)
    again, _ = quantize_blocks(dequantize_blocks(codes, scales), block_size)
    assert np.array_equal(codes, again)


@settings(deadline=None, derandomize=True)
@given(matrices())
def test_activations_are_rounded_like_weights(case: tuple[Floats, int]) -> None:
    x, block_size = case
    codes, scales = quantize_blocks(x, block_size)
    signed, same_scales = quantize_activations(x, block_size)
    assert np.array_equal(signed + np.int16(128), codes)
    assert np.array_equal(scales, same_scales)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_values_on_the_grid_are_exact(block_size: int, rng: np.random.Generator) -> None:
    signed = rng.integers(-127, 128, (5, 4 * block_size)).astype(np.float32)
    signed[:, ::block_size] = 127
    weight = signed * np.float32(2.0**-9)
    codes, scales = quantize_blocks(weight, block_size)
    assert np.array_equal(codes, signed + 128)
    assert np.array_equal(dequantize_blocks(codes, scales), weight)


def test_halves_are_rounded_to_even() -> None:
    values = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0] * 2], np.float32)
    codes, _ = quantize_blocks(values, 16)
    assert codes[0, :8].tolist() == [255, 128, 130, 130, 128, 126, 126, 128]


def test_block_of_zeros_comes_back_as_zeros() -> None:
    codes, scales = quantize_blocks(np.zeros((2, 32), np.float32), 16)
    assert (codes == 128).all()
    assert (scales == 0).all()
    assert (dequantize_blocks(codes, scales) == 0).all()


def test_long_matrix_is_cut_into_strips_without_a_trace(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((700, 512)).astype(np.float32)
    codes, scales = quantize_blocks(weight, 32)
    rows = [quantize_blocks(row, 32) for row in weight]
    assert np.array_equal(codes, np.stack([row[0] for row in rows]))
    assert np.array_equal(scales, np.stack([row[1] for row in rows]))


def test_input_is_left_alone(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((4, 64)).astype(np.float32)
    before = weight.copy()
    quantize_blocks(weight, 16)
    assert np.array_equal(weight, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    weight = np.ones((3, 64), np.float32)
    weight[1, 40] = value
    with pytest.raises(ExportError, match="NaN or inf"):
        quantize_blocks(weight, 16)


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ExportError, match="multiple of block_size 32, found 48"):
        quantize_blocks(np.ones((2, 48), np.float32), 32)


@pytest.mark.parametrize(
    ("k", "preferred", "expected"),
    [(1408, 128, 128), (1408, 256, 128), (48, 128, 16), (96, 128, 32), (256, 64, 64)],
)
def test_block_size_is_the_largest_that_divides(k: int, preferred: int, expected: int) -> None:
    assert block_size_for(k, preferred) == expected


@pytest.mark.parametrize("k", [0, 8, 40, 130])
def test_no_block_size_names_the_way_out(k: int) -> None:
    with pytest.raises(ExportError, match="--weights fp32"):
        block_size_for(k, 128)


def test_odd_preference_is_refused() -> None:
    with pytest.raises(ExportError, match="found 48"):
        block_size_for(96, 48)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(matrices())
def test_nibbles_stay_within_half_a_step_or_are_clipped(case: tuple[Floats, int]) -> None:
    weight, block_size = case
    packed, scales = quantize_nibbles(weight, block_size)
    assert packed.dtype == np.uint8
    assert packed.shape == (*weight.shape[:-1], weight.shape[-1] // 2)
    codes = unpack_nibbles(packed)
    error = np.abs(dequantize_blocks(codes, scales).astype(np.float64) - weight)
    steps = np.repeat(np.abs(scales).astype(np.float64) * 16, block_size, axis=-1)
    is_end = (codes == 0) | (codes == 240)
    assert (error <= np.where(is_end, 3.1, 0.5 + 1e-5) * steps + 1e-35).all()


def test_the_first_neighbour_is_in_the_low_half() -> None:
    weight = np.zeros((1, 16), np.float32)
    weight[0, :3] = [-8, 3, 7]
    packed, scales = quantize_nibbles(weight, 16)
    assert scales.tolist() == [[1 / 16]]
    assert packed[0, :2].tolist() == [0 | 11 << 4, 15 | 8 << 4]
    assert np.array_equal(dequantize_blocks(unpack_nibbles(packed), scales), weight)


def test_the_side_with_the_largest_value_has_a_code_more() -> None:
    weight = np.zeros((2, 16), np.float32)
    weight[:, :2] = [[8, -7], [-8, 7]]
    packed, scales = quantize_nibbles(weight, 16)
    assert np.sign(scales).tolist() == [[-1], [1]]
    assert np.array_equal(dequantize_blocks(unpack_nibbles(packed), scales), weight)


def test_the_search_loses_less_than_the_largest_value_alone(
    rng: np.random.Generator,
) -> None:
    weight = rng.standard_normal((500, 32), np.float32)
    packed, scales = quantize_nibbles(weight, 32)
    found = np.square(dequantize_blocks(unpack_nibbles(packed), scales) - weight).sum()
    peaks = np.take_along_axis(weight, np.abs(weight).argmax(-1)[:, None], -1)
    plain = np.clip(np.rint(weight / (peaks / -8)), -8, 7) * (peaks / -8)
    assert found < 0.95 * np.square(plain - weight).sum()


def test_nibbles_of_zeros_are_zeros() -> None:
    packed, scales = quantize_nibbles(np.zeros((2, 32), np.float32), 32)
    assert not scales.any()
    assert (packed == 0x88).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_nibbles_refuse_what_is_not_finite(wrong: float) -> None:
    weight = np.zeros((1, 32), np.float32)
    weight[0, 7] = wrong
    with pytest.raises(ExportError, match="expected finite values, found NaN or inf"):
        quantize_nibbles(weight, 32)
