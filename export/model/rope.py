"""Rotary position embedding, with frequencies stretched by YaRN or LongRoPE.

Pair i of a vector is rotated by the angle position * frequency_i. Which values make a pair is the
model's choice: neighbours (interleaved) or one from each half. The output is always in half-split
order: all first members, then all second ones. Queries and keys go through the same permutation,
so their products do not change.

Shapes: B batch, T tokens, H heads, R qk_rope_head_dim; R2 is R/2, the number of pairs.

Source: RoFormer (arXiv 2104.09864), section 3.2; YaRN (arXiv 2309.00071), section 3.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.config.rope_scaling import LongRopeScaling, YarnScaling


def frequencies(config: ModelConfig) -> NDArray[np.float32]:
    """Angle per position of each pair, [R2]: theta^(-2i/R), stretched when the model says so.

    With LongRoPE these are the frequencies of short contexts; see ``long_frequencies``.

    Every step is rounded to float32 as in the models' training code: at position 100000 the last
    bit of a frequency is a visible angle.
    """
    size, scaling = config.qk_rope_head_dim, config.rope_scaling
    wavelengths = _wavelengths(config)
    plain = np.float32(1) / wavelengths
    if scaling is None:
        return plain
    if isinstance(scaling, LongRopeScaling):
        return _divided(wavelengths, scaling.short_factor)
    stretched = np.float32(1) / (np.float32(scaling.factor) * wavelengths)
    keep = np.float32(1) - _ramp(scaling, config.rope_theta, size)
    mixed: NDArray[np.float32] = stretched * (np.float32(1) - keep) + plain * keep
    return mixed


def long_frequencies(config: ModelConfig) -> NDArray[np.float32] | None:
    """LongRoPE's frequencies of long contexts, [R2]; None for models that have one set only."""
    scaling = config.rope_scaling
    if not isinstance(scaling, LongRopeScaling):
        return None
    return _divided(_wavelengths(config), scaling.long_factor)


def _divided(wavelengths: NDArray[np.float32], factors: tuple[float, ...]) -> NDArray[np.float32]:
    divided: NDArray[np.float32] = np.float32(1) / (np.array(factors, np.float32) * wavelengths)
    return divided


def _wavelengths(config: ModelConfig) -> NDArray[np.float32]:
    size = config.qk_rope_head_dim
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    # The power itself in float64: float32 powers differ between libraries in the last bit.
    powers = np.power(float(np.float32(config.rope_theta)), exponents.astype(np.float64))
    return powers.astype(np.float32)


def _ramp(scaling: YarnScaling, theta: float, size: int) -> NDArray[np.float32]:
    """0 for pairs that turn often within the original context, 1 for those that hardly do."""

    def pair_that_turns(rotations: float) -> float:
        wavelength = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return size * math.log(wavelength) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # a step, without dividing by zero
    pairs = np.arange(size // 2, dtype=np.float32)
    ramp: NDArray[np.float32] = (pairs - np.float32(low)) / np.float32(high - low)
    return ramp.clip(np.float32(0), np.float32(1))


class RotaryEmbedding(nn.Module):
    """Tables of cosines and sines for given positions. Has no parameters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Not a buffer: it must hold its values under the meta device and fake tensors too.
        self._frequencies: list[float] = frequencies(config).tolist()
        long = long_frequencies(config)
        self._long_frequencies = None if long is None else long.tolist()
        if isinstance(config.rope_scaling, LongRopeScaling):
            self._original_context = config.rope_scaling.original_max_position_embeddings
        self._factor = config.rope_scaling.cos_sin_factor if config.rope_scaling else 1.0

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The cosines and sines, each float32 [B,T,R2], of ``position_ids`` int64 [B,T]."""
        per_position = torch.tensor(self._frequencies, device=position_ids.device)
        if self._long_frequencies is not None:
            long = torch.tensor(self._long_frequencies, device=position_ids.device)
            is_long = position_ids.max() >= self._original_context
            per_position = torch.where(is_long, long, per_position)
        angles = position_ids[..., None].float() * per_position
        return angles.cos() * self._factor, angles.sin() * self._factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate the pairs of the last dimension.

    Args:
        x: [.., R], pairs (0,1),(2,3),.. when ``interleaved``, else (0,R2),(1,R2+1),..
        cos: [.., R2], broadcast against ``x``.
        sin: [.., R2].
        interleaved: Which values of ``x`` make a pair.

    Returns:
        [.., R] in half-split order.
    """
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
