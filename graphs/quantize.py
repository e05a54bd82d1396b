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
