"""FP8 weights: float8_e4m3fn values with one float scale for each block of a matrix.

A matrix ``X.weight`` [N,K] comes with ``X.weight_scale_inv`` [ceil(N/n), ceil(K/k)] for blocks of
n x k values, those at the right and lower edges being smaller: value = fp8 * scale. Stacks of
matrices [E,N,K] have stacks of scales.

Source: DeepSeek-V3 (arXiv 2412.19437), section 3.3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from shoal.export.checkpoint.stored_tensors import TensorHeader

FP8_DTYPE = "F8_E4M3"
SCALE_SUFFIX = "_scale_inv"
SCALE_DTYPES = ("F32", "BF16", "F16")


def scale_name(name: str) -> str:
    """Name of the scales that belong to the FP8 tensor ``name``."""
    return f"{name}{SCALE_SUFFIX}"


def scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the scales of a matrix, or stack of matrices, of ``shape``."""
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


def scale_problems(
    name: str, headers: Mapping[str, TensorHeader], block: tuple[int, int]
) -> Iterator[str]:
    """What is wrong with the scales of the FP8 tensor ``name``: one clause each."""
    shape = headers[name].shape
    if len(shape) < 2:
        yield f"{name}: expected a matrix, found FP8 values of shape {list(shape)}"
        return
    found = headers.get(scale_name(name))
    if found is None:
        yield f"{name}: FP8 without scales, {scale_name(name)} is missing"
        return
    expected = scale_shape(shape, block)
    if found.shape != expected:
        yield (
            f"{scale_name(name)}: expected shape {list(expected)}, one scale for each block of "
            f"{block[0]} x {block[1]}, found {list(found.shape)}"
        )
    if found.dtype not in SCALE_DTYPES:
        yield f"{scale_name(name)}: expected {', '.join(SCALE_DTYPES)}, found {found.dtype}"


def apply_scales(values: Tensor, scales: Tensor, block: tuple[int, int], *, start: int) -> None:
    """Multiply FP8 values, as float32, with their scales in place.

    Args:
        values: [..,N,K], rows ``start`` and following of a matrix, or whole matrices.
        scales: [..,n,k], from the row of blocks on that ``start`` is in.
        block: Rows and columns that share a scale.
        start: First row, counted from the beginning of the matrix; 0 for stacks.
    """
    if values.dim() > 2:
        for matrix, its_scales in zip(values, scales, strict=True):
            apply_scales(matrix, its_scales, block, start=0)
        return
    rows, columns = block
    row = 0
    for block_scales in scales.repeat_interleave(columns, dim=1)[:, : values.shape[1]]:
        stop = row + rows - (start + row) % rows
        values[row:stop] *= block_scales
        row = stop
