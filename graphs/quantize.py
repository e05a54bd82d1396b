"""int8 maths: blocks of uint8 with zero point 128 and one float32 scale each.

A block is ``block_size`` neighbours along the last (input) dimension:

    value = (q - 128) * scale        scale = max|w| / 127 over the block        q in 1..255

The code 0 is never used, so the range is symmetric and zero is exact. Everything here is
element-wise float32 arithmetic, the same on every machine: equal input, equal bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.graphs.errors import ExportError
from shoal.graphs.recipes import BLOCK_SIZES

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

ZERO_POINT = 128
LARGEST_CODE = 127

_STRIP_VALUES = 1 << 17  # work in strips of 512 KiB of float32: they stay in the cache
# Of a 4-bit block, in units of its largest value, which gets code -8 or is clipped to it.
_NIBBLE_STEPS = tuple(share / -8 for share in (1.0, 0.80, 0.86, 0.92, 0.96, 1.04, 1.08, 1.14))
_SMALLEST_SCALE = np.finfo(np.float32).tiny  # below it 1 / scale could overflow


def block_size_for(k: int, preferred: int) -> int:
    """The largest power of two in 16..``preferred`` that divides ``k``.

    Args:
        k: Length of the dimension that is cut into blocks.
        preferred: Upper limit, one of ``BLOCK_SIZES``.

    Raises:
        ExportError: ``preferred`` is no block size, or ``k`` is no multiple of 16.
    """
    if preferred not in BLOCK_SIZES:
        raise ExportError(
            f"block size: expected one of {BLOCK_SIZES}, found {preferred}; choose one"
        )
    fitting = [size for size in BLOCK_SIZES if size <= preferred and k % size == 0]
    if k <= 0 or not fitting:
        raise ExportError(
            f"int8 weights: expected an input dimension that is a multiple of 16, found {k}; "
            "export with --weights fp32"
        )
    return fitting[-1]


def quantize_blocks(weight: Floats, block_size: int) -> tuple[Codes, Floats]:
    """Quantize to uint8 codes and one scale per block.

    A block of zeros (or of values so small that their scale would round to zero) gets scale 0 and
    codes 128, so it dequantizes to exact zeros.

    Args:
        weight: float32 [.., K].
        block_size: Divides K.

    Returns:
        Codes uint8 [.., K] in 1..255 and scales float32 [.., K/block_size].

    Raises:
        ExportError: K is no multiple of ``block_size``, or a value is NaN or infinite.
    """
    blocks = _as_blocks(weight, block_size)
    codes = np.empty(blocks.shape, np.uint8)
    scales = np.empty(len(blocks), np.float32)
    step = max(1, _STRIP_VALUES // block_size)
    for start in range(0, len(blocks), step):
        strip = slice(start, start + step)
        signed, scales[strip] = _round_strip(blocks[strip])
        np.add(signed, ZERO_POINT, out=signed)
        codes[strip] = signed
    return codes.reshape(weight.shape), scales.reshape(*weight.shape[:-1], -1)


def dequantize_blocks(codes: Codes, scales: Floats) -> Floats:
    """The float32 values that codes and scales stand for.

    Args:
        codes: uint8 [.., K].
        scales: float32 [.., K/block_size]; the block size follows from the two shapes.

    Returns:
        float32 [.., K], ``(codes - 128) * scales``.
    """
    block_size = codes.shape[-1] // scales.shape[-1]
    values = codes.reshape(*scales.shape, block_size).astype(np.float32)
    values -= np.float32(ZERO_POINT)
    values *= scales[..., None]
    return values.reshape(codes.shape)


def quantize_nibbles(weight: Floats, block_size: int) -> tuple[Codes, Floats]:
    """Quantize to 4 bits, two neighbours in a byte, and one scale per block.

    A nibble n stands for (16 n - 128) * scale, that is for n - 8 steps of 16 * scale: -8..7. The
    scale has the sign that lets the value of largest size use the code -8, and is the one of
    several candidates around that value with the smallest sum of squared errors.

    Args:
        weight: float32 [.., K].
        block_size: Even; divides K.

    Returns:
        Packed codes uint8 [.., K/2], the first of two neighbours in the low half, and scales
        float32 [.., K/block_size].

    Raises:
        ExportError: K is no multiple of ``block_size``, or a value is NaN or infinite.
    """
    blocks = _as_blocks(weight, block_size)
    packed = np.empty((len(blocks), block_size // 2), np.uint8)
    scales = np.empty(len(blocks), np.float32)
    step = max(1, _STRIP_VALUES // block_size)
    for start in range(0, len(blocks), step):
        strip = slice(start, start + step)
        steps = best_nibble_steps(blocks[strip])
        packed[strip] = pack_nibbles(nibbles(blocks[strip], steps))
        scales[strip] = steps / np.float32(16)
    return (
        packed.reshape(*weight.shape[:-1], -1),
        scales.reshape(*weight.shape[:-1], -1),
    )


def pack_nibbles(codes: Floats) -> Codes:
    """Bytes uint8 [.., K/2] of the codes -8..7 [.., K], the first of two in the low half."""
    shifted = (codes + np.float32(8)).astype(np.uint8)
    return shifted[..., 0::2] | np.left_shift(shifted[..., 1::2], 4)


def unpack_nibbles(packed: Codes) -> Codes:
    """The int8 codes [.., K] that packed nibbles uint8 [.., K/2] stand for, multiples of 16."""
    codes = np.empty((*packed.shape, 2), np.uint8)
    np.left_shift(packed, 4, out=codes[..., 0])
    np.bitwise_and(packed, 0xF0, out=codes[..., 1])
    return codes.reshape(*packed.shape[:-1], -1)


def quantize_activations(x: Floats, block_size: int) -> tuple[NDArray[np.int8], Floats]:
    """Quantize activations as the int8 ops do: per row and block, symmetric, half to even.

    Args:
        x: float32 [.., K].
        block_size: Divides K.

    Returns:
        Codes int8 [.., K] in -127..127 and scales float32 [.., K/block_size].

    Source: onnxruntime, MatMulNBits with accuracy_level 4 and QMoE (values are multiplied by the
    float32 reciprocal of the scale, not divided by the scale).
    """
    signed, scales = _round_strip(_as_blocks(x, block_size))
    return signed.astype(np.int8).reshape(x.shape), scales.reshape(*x.shape[:-1], -1)


def largest_error(scales: Floats) -> Floats:
    """Upper bound of ``|w - dequantize(quantize(w))|`` in each block, same shape as ``scales``.

    Half a step, plus what float32 rounding of ``w / scale`` and of ``code * scale`` may add.
    """
    rounding = LARGEST_CODE * 4 * np.finfo(np.float32).eps
    return scales * np.float32(0.5 + rounding) + np.float32(LARGEST_CODE) * _SMALLEST_SCALE


def nibbles(blocks: Floats, steps: Floats) -> Floats:
    """Nearest multiples of each block's step, -8..7 [blocks, block_size]."""
    reciprocal = np.divide(1.0, steps, out=np.zeros_like(steps), where=steps != 0)
    codes = blocks * reciprocal[:, None]
    np.rint(codes, out=codes)
    clipped: Floats = np.clip(codes, -8, 7, out=codes)
    return clipped


def best_nibble_steps(blocks: Floats, importance: Floats | None = None) -> Floats:
    """For each block [blocks, block_size] the step with the smallest sum of squared errors.

    Args:
        blocks: float32 [blocks, block_size].
        importance: weights of the squares [block_size]; None weighs all alike.
    """
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[:, None], -1)[:, 0]
    if not np.isfinite(peak).all():
        raise ExportError(
            "int4 blocks: expected finite values, found NaN or inf; repair the checkpoint"
        )
    peak = np.where(np.abs(peak) < 256 * _SMALLEST_SCALE, np.float32(0), peak)
    reciprocal = np.divide(1.0, peak, out=np.zeros_like(peak), where=peak != 0)
    shares = blocks * reciprocal[:, None]  # of the largest value, so that squares stay in range
    best = np.full_like(peak, _NIBBLE_STEPS[0])
    smallest = _squared_errors(shares, _NIBBLE_STEPS[0], importance)
    for step in _NIBBLE_STEPS[1:]:
        errors = _squared_errors(shares, step, importance)
        is_better = errors < smallest
        best[is_better], smallest[is_better] = step, errors[is_better]
    return peak * best


def _squared_errors(shares: Floats, step: float, importance: Floats | None) -> Floats:
    """Of each block, added in halves: in one order on every machine."""
    errors = shares * np.float32(1 / step)
    np.rint(errors, out=errors)
    np.clip(errors, -8, 7, out=errors)
    errors *= np.float32(step)
    errors -= shares
    errors *= errors
    if importance is not None:
        errors *= importance
    while errors.shape[1] > 1:
        half = errors.shape[1] // 2
        errors = errors[:, :half] + errors[:, half:]
    sums: Floats = errors[:, 0]
    return sums


def _as_blocks(values: Floats, block_size: int) -> Floats:
    """View float32 [.., K] as [blocks, block_size]."""
    k = values.shape[-1]
    if k % block_size:
        raise ExportError(
            f"int8 blocks: expected a multiple of block_size {block_size}, found {k} values in a "
            "row; use block_size_for or export with --weights fp32"
        )
    return np.ascontiguousarray(values, np.float32).reshape(-1, block_size)


def _round_strip(blocks: Floats) -> tuple[Floats, Floats]:
    """Codes as float32 in -127..127 [blocks, block_size] and scales [blocks]."""
    starts = np.arange(0, blocks.size, blocks.shape[-1])
    peak = np.maximum.reduceat(np.abs(blocks).ravel(), starts)  # twice as fast as max(axis=-1)
    if not np.isfinite(peak).all():  # maximum hands on NaN
        raise ExportError(
            "int8 blocks: expected finite values, found NaN or inf; repair the checkpoint"
        )
    scales: Floats = np.divide(peak, LARGEST_CODE, dtype=np.float32)
    scales[scales < _SMALLEST_SCALE] = 0.0
    reciprocal = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales > 0)
    codes = blocks * reciprocal[:, None]
    np.rint(codes, out=codes)
    return codes, scales
