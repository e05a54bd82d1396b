"""Routed experts of the two streams: each is applied when its matrices pass by.

All first matrices of a layer lie before all second ones in weights.bin, so what the first ones give
is kept until the second ones come. Where there are windows that calibrate, 4-bit matrices are
rounded for what those windows give them.

Shapes: B windows of the text, T tokens each, D hidden, F expert width, K chosen experts, N tokens
of one stream that were routed to an expert. Tensors with 2B in front hold the reference's windows,
then the served model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.fidelity.calibration import round_with_inputs
from shoal.export.fidelity.rounding import rounded
from shoal.export.model.moe import MoE
from shoal.export.transfer import Each, Encode
from shoal.graphs.quantize import Codes, Floats
from shoal.graphs.recipes import WeightFormat

Pull = Callable[[str, Each, Encode | None], None]
"""Hands the rows of a parameter of the layer, in order, to a function; see ``LayerWeights``."""

Activated = list[tuple[Tensor, Tensor]]
"""By expert, what its first matrices made of its tokens: [N,F] of the reference and as served."""


class PulledMoE(MoE):
    """A ``MoE`` of both streams at once, without ``experts``: these are pulled."""

    def __init__(
        self,
        config: ModelConfig,
        experts: str,
        pull: Pull,
        formats: Mapping[str, WeightFormat],
        num_measured: int,
    ) -> None:
        """Take what ``MoE`` takes, and where the experts come from.

        Args:
            config: of the model.
            experts: what the names of the experts' parameters begin with in the layer.
            pull: gives their rows.
            formats: of the layer's weights that are not float32.
            num_measured: windows of the text that fidelity is measured on.
        """
        super().__init__(config)
        del self.experts
        self._gate_up, self._down = f"{experts}.gate_up", f"{experts}.down"
        self._pull = pull
        self._stored = formats.get(self._gate_up)
        self._num_measured = num_measured

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As ``MoE.forward`` for ``x`` [2B,T,D]."""
        ids, shares = self.route(x)
        beside = self.beside(x, ids, shares)
        sums = torch.zeros_like(x) if beside is None else beside
        tokens = RoutedTokens(
            x=x, ids=ids, shares=shares, stored=self._stored, num_measured=self._num_measured
        )
        activated = self._first_matrices(tokens)
        self._second_matrices(tokens, activated, sums)
        return self.output_norm(sums), ids, shares

    def _first_matrices(self, tokens: RoutedTokens) -> Activated:
        activated: Activated = []

        def apply(start: int, rows: Tensor, served: Tensor) -> None:
            for expert, pair in enumerate(zip(rows, served, strict=True), start):
                activated.append(tokens.activate(expert, *pair))

        self._pull(self._gate_up, apply, self._encode(tokens, tokens.calibration_inputs))
        return activated

    def _second_matrices(self, tokens: RoutedTokens, activated: Activated, sums: Tensor) -> None:
        def apply(start: int, rows: Tensor, served: Tensor) -> None:
            for expert, pair in enumerate(zip(rows, served, strict=True), start):
                tokens.add(expert, activated[expert], pair, sums)

        def inputs(expert: int) -> Tensor:
            return activated[expert][1][tokens.num_measured_tokens(expert) :]

        self._pull(self._down, apply, self._encode(tokens, inputs))

    def _encode(self, tokens: RoutedTokens, inputs: Callable[[int], Tensor]) -> Encode | None:
        """How to round the experts whose inputs in the windows that calibrate are known."""
        if self._stored is None or self._stored.bits != 4 or not tokens.are_calibrating:
            return None
        return lambda start, rows, stored: _round_experts(start, rows, stored, inputs)


@dataclass(frozen=True, kw_only=True)
class RoutedTokens:
    """The tokens of both streams in front of a layer's routed experts.

    Attributes:
        x: what the experts read, [2B,T,D].
        ids: the experts chosen, int64 [2B,T,K].
        shares: their weights, [2B,T,K].
        stored: format of the experts, which their served inputs are rounded for.
        num_measured: windows that fidelity is measured on; those after them calibrate.
    """

    x: Tensor
    ids: Tensor
    shares: Tensor
    stored: WeightFormat | None
    num_measured: int

    @property
    def are_calibrating(self) -> bool:
        """Whether there are windows that calibrate."""
        return len(self.x) // 2 > self.num_measured

    def activate(self, expert: int, gate_up: Tensor, served: Tensor) -> tuple[Tensor, Tensor]:
        """What an expert's first matrices, [2F,D] as float32 and as served, make of its tokens."""
        (x, served_x), (ids, served_ids) = self.x.chunk(2), self.ids.chunk(2)
        reference = _swiglu(x[_routed(ids, expert)], gate_up)
        served_inputs = rounded(served_x[_routed(served_ids, expert)], self.stored)
        return reference, rounded(_swiglu(served_inputs, served), self.stored)

    def add(
        self, expert: int, activated: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor], y: Tensor
    ) -> None:
        """Add to ``y`` [2B,T,D] what an expert's second matrices [D,F] make of its tokens."""
        halves = zip(self.ids.chunk(2), self.shares.chunk(2), y.chunk(2), strict=True)
        for (ids, shares, sums), inner, weight in zip(halves, activated, down, strict=True):
            chosen = ids == expert
            routed = chosen.any(-1)
            share = (shares * chosen).sum(-1)[routed]
            sums[routed] += share[:, None] * (inner @ weight.T)

    def calibration_inputs(self, expert: int) -> Tensor:
        """What the windows that calibrate give an expert's first matrices, as served, [..,D]."""
        x, ids = (half.chunk(2)[1][self.num_measured :] for half in (self.x, self.ids))
        return rounded(x[_routed(ids, expert)], self.stored)

    def num_measured_tokens(self, expert: int) -> int:
        """How many of an expert's served tokens are in windows that fidelity is measured on."""
        ids = self.ids.chunk(2)[1][: self.num_measured]
        return int(_routed(ids, expert).sum())


def _routed(ids: Tensor, expert: int) -> Tensor:
    """Which tokens go to an expert."""
    return (ids == expert).any(-1)


def _swiglu(x: Tensor, gate_up: Tensor) -> Tensor:
    both = x @ gate_up.T
    return nn.functional.silu(both[..., 0::2]) * both[..., 1::2]


def _round_experts(
    start: int, rows: Tensor, stored: WeightFormat, inputs: Callable[[int], Tensor]
) -> tuple[Codes, Floats]:
    """Packed codes and scales of the experts from ``start`` on, rounded for their inputs."""
    pairs = [
        round_with_inputs(matrix.numpy(), inputs(expert), stored.block_size)
        for expert, matrix in enumerate(rows, start)
    ]
    return np.stack([codes for codes, _ in pairs]), np.stack([scales for _, scales in pairs])
