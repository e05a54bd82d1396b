"""Activations as an int8 op sees them."""

from __future__ import annotations

from torch import Tensor

from shoal.export.model import ops
from shoal.graphs.recipes import WeightFormat


def rounded(x: Tensor, stored: WeightFormat | None) -> Tensor:
    """``x`` [.., K] as the op sees it whose weight is stored so, None for float32."""
    if stored is None:
        return x
    return ops.fake_quantize(x, stored.block_size, stored.input_terms)
