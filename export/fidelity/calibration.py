"""Round 4-bit weights so that what they make of a text stays the same (GPTQ).

Plain rounding keeps each weight close. Here the outputs for the inputs X of a text are kept close:
columns are rounded one after the other, and those that follow make up for the error of each, as far
as their inputs are correlated. In memory is a matrix of ``COLUMNS`` by ``COLUMNS``.

Source: Frantar et al., GPTQ (arXiv 2210.17323), section 3: with the upper Cholesky factor U of
(X^T X + damping)^-1, column i loses e = (w_i - q_i) / U_ii and columns j > i become w_j - e U_ij.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.graphs.quantize import Codes, Floats, best_nibble_steps, nibbles, pack_nibbles

COLUMNS = 256
"""Columns among which errors are passed on; fewer gain less (docs/accuracy.md)."""

_DAMPING = 0.03  # of the mean square of an input; keeps few tokens from being taken too literally


@dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """A name and int64 windows [B,T]."""

    name: str
    ids_BT: Tensor


def round_with_inputs(weight: Floats, inputs: Tensor, block_size: int) -> tuple[Codes, Floats]:
    """Quantize to 4 bits; the meaning of the result is that of ``quantize_nibbles``.

    Args:
        weight: float32 [N,K].
        inputs: float32 [T,K], what a text gives the matrix; without any the weights are rounded one
            by one.
        block_size: even; divides K.

    Returns:
        Packed codes uint8 [N,K/2] and scales float32 [N,K/block_size].
    """
    n, k = weight.shape
    codes_KN = np.empty((k, n), np.float32)
    steps_NB = np.empty((n, k // block_size), np.float32)
    for start in range(0, k, COLUMNS):
        group = slice(start, min(start + COLUMNS, k))
        rest_KN = np.ascontiguousarray(weight[:, group].T)
        squares, factor = _second_moments(inputs[:, group])
        for first in range(0, len(rest_KN), block_size):
            block = slice(first, first + block_size)
            steps = best_nibble_steps(np.ascontiguousarray(rest_KN[block].T), squares[block])
            steps_NB[:, (start + first) // block_size] = steps
            codes_KN[start + first : start + first + block_size] = _round_block(
                rest_KN, block, steps, factor
            )
    steps_NB *= np.float32(1 / 16)
    return pack_nibbles(codes_KN.T), steps_NB


def _round_block(rest_KN: Floats, block: slice, steps: Floats, factor: Floats) -> Floats:
    """Codes of a block of columns; the columns after it in ``rest_KN`` take over its errors."""
    codes = np.empty((block.stop - block.start, len(steps)), np.float32)
    errors = np.empty_like(codes)
    for i in range(block.start, block.stop):
        row = i - block.start
        codes[row] = nibbles(rest_KN[i][:, None], steps)[:, 0]
        errors[row] = (rest_KN[i] - codes[row] * steps) / factor[i, i]
        rest_KN[i + 1 : block.stop] -= factor[i, i + 1 : block.stop, None] * errors[row]
    rest_KN[block.stop :] -= factor[block, block.stop :].T @ errors
    return codes


def _second_moments(inputs: Tensor) -> tuple[Floats, Floats]:
    """Mean squares [K], in units of their mean, and the factor U [K,K]."""
    x = inputs.double()
    moments = x.T @ x
    mean = moments.diagonal().mean()
    if mean == 0:  # no token came here
        moments, mean = torch.zeros_like(moments), torch.ones_like(mean)
    moments = moments / mean + _DAMPING * torch.eye(len(moments), dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(moments), upper=True)
    squares: NDArray[np.float32] = moments.diagonal().float().numpy()
    return squares, factor.float().numpy()
