"""The small parts: normalisation, linear maps, embedding and the dense feed-forward network.

Shapes: D hidden_size, K input features, N output features, F feed-forward width, W vocab_size;
".." stands for any leading dimensions. All weights are float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.export.model import ops


class RMSNorm(nn.Module):
    """Divide by the root mean square, then scale: x / sqrt(mean(x^2) + eps) * weight.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), equation 4.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``x`` [.., size]."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Linear(nn.Module):
    """A linear map that the exporter turns into an int8 one.

    Attributes:
        weight: [N, K].
        bias: [N], or None.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [.., K] to [.., N]."""
        y = ops.linear(x, self.weight)
        return y if self.bias is None else y + self.bias


class Embedding(nn.Module):
    """One vector for each token of the vocabulary: ``weight`` [W, D]."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look up ``input_ids`` int64 [..]; returns [.., D]."""
        return ops.embedding(input_ids, self.weight)


class SwiGLU(nn.Module):
    """The gated feed-forward network: down(silu(gate(x)) * up(x)).

    Source: Shazeer 2020 (arXiv 2002.05202), equation 6.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, width)
        self.up_proj = Linear(hidden_size, width)
        self.down_proj = Linear(width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x`` [.., D]; returns [.., D]."""
        down: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return down
