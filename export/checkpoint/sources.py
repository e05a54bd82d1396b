"""How a parameter of the reference modules is put together from tensors of a checkpoint.

Every source gives any range of its parameter's first axis (vocabulary rows, heads or experts), so
that nothing larger than one expert need be in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]


class Reader(Protocol):
    """What sources read from; ``StoredTensors`` are one."""

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the first axis of a checkpoint tensor, as float32."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one parameter comes from: a checkpoint tensor of the same shape, unless a subclass.

    Attributes:
        name: Of the parameter.
        shape: Of the parameter.
        tensors: Names of the checkpoint tensors it is made of, with the shapes they must have.
        scale: What their values are multiplied by.
    """

    name: str
    shape: Shape
    tensors: dict[str, Shape]
    scale: float = 1.0

    def load_rows(self, reader: Reader, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (exclusive) of the parameter, float32."""
        rows = self._rows(reader, start, stop)
        return rows if self.scale == 1 else rows.mul_(self.scale)

    def _rows(self, reader: Reader, start: int, stop: int) -> Tensor:
        """What ``load_rows`` gives before it is scaled, in memory of its own."""
        (tensor,) = self.tensors
        return reader.read_rows(tensor, start, stop)

    def renamed(self, tensor_name: Callable[[str], str]) -> Source:
        """The same of tensors that have other names."""
        tensors = {tensor_name(name): shape for name, shape in self.tensors.items()}
        return replace(self, tensors=tensors)

    def load(self, reader: Reader) -> Tensor:
        """The whole parameter, float32."""
        return self.load_rows(reader, 0, self.shape[0])


@dataclass(frozen=True, kw_only=True)
class Zeros(Source):
    """A parameter that the checkpoint leaves out because it is zero."""

    def _rows(self, reader: Reader, start: int, stop: int) -> Tensor:
        """Zeros."""
        return torch.zeros(stop - start, *self.shape[1:])


@dataclass(frozen=True, kw_only=True)
class HeadPart(Source):
    """Some rows of every head of a projection [H*rows, C], as [H, part, C].

    Attributes:
        head_rows: Rows that a head has.
        first_row: Where the part begins within a head.
    """

    head_rows: int
    first_row: int

    def _rows(self, reader: Reader, start: int, stop: int) -> Tensor:
        """Heads ``start`` to ``stop``."""
        (tensor,) = self.tensors
        rows = reader.read_rows(tensor, start * self.head_rows, stop * self.head_rows)
        heads = rows.reshape(stop - start, self.head_rows, self.shape[-1])
        return heads[:, self.first_row : self.first_row + self.shape[1]].contiguous()


@dataclass(frozen=True, kw_only=True)
class StackedGateUp(Source):
    """Gate and up rows interleaved, from a stack [E,2F,D] that has all gate rows first."""

    def _rows(self, reader: Reader, start: int, stop: int) -> Tensor:
        """Experts ``start`` to ``stop``."""
        (tensor,) = self.tensors
        gate, up = reader.read_rows(tensor, start, stop).chunk(2, dim=1)
        return _interleave(gate, up)


@dataclass(frozen=True, kw_only=True)
class SplitGateUp(Source):
    """Gate and up rows interleaved, from a gate and an up matrix [F,D] for each expert."""

    def _rows(self, reader: Reader, start: int, stop: int) -> Tensor:
        """Experts ``start`` to ``stop``; ``tensors`` has gate, up, gate, up, .."""
        names, width = list(self.tensors), self.shape[1] // 2
        experts = []
        for expert in range(start, stop):
            gate, up = names[2 * expert : 2 * expert + 2]
            experts.append(
                _interleave(reader.read_rows(gate, 0, width), reader.read_rows(up, 0, width))
            )
        return _stack(experts)


@dataclass(frozen=True, kw_only=True)
class SplitDown(Source):
    """Down matrices, from one [D,F] for each expert."""

    def _rows(self, reader: Reader, start: int, stop: int) -> Tensor:
        """Experts ``start`` to ``stop``."""
        names = list(self.tensors)[start:stop]
        return _stack([reader.read_rows(name, 0, self.shape[1]) for name in names])


def _interleave(gate: Tensor, up: Tensor) -> Tensor:
    """[..,F,D] twice to [..,2F,D]: gate0, up0, gate1, up1, .."""
    shape = (*gate.shape[:-2], gate.shape[-2], 2, gate.shape[-1])
    both = torch.from_numpy(np.empty(shape, np.float32))
    return torch.stack([gate, up], dim=-2, out=both).flatten(-3, -2)


def _stack(experts: list[Tensor]) -> Tensor:
    # One expert, the usual case, needs no copy.
    return experts[0][None] if len(experts) == 1 else torch.stack(experts)
