"""The latent cache: what multi-head latent attention keeps of each token, and nothing else.

S is the number of cached tokens.

A layer's cache has one part or several (graphs/cache_types.py). For each there is one buffer
[1, capacity, width] whose first S rows are in use. A graph is given the prefix [1, S, width] as
input and as output, so a step writes its rows in place and neither copies nor masks unused room.
Growing copies rows; nothing is ever computed again.

A fork shares the buffers until one of the two makes room for new rows: everything is written
behind ``reserve``, so that is where the rows are copied.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.graphs.contract import in_slot
from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime.engine.arrays import Arrays, require_arrays, row_count
from shoal.runtime.engine.layer_state import CacheLayout, StateBinding, too_long
from shoal.runtime.machine.memory import read_memory

_SMALLEST_CAPACITY = 64
_GROWTH = 1.5  # each row is copied about twice in all, and at most a third of the room is unused


class LatentCache:
    """Growing buffers of latent rows, one for each layer and part: a ``LayerState``.

    Args:
        num_layers: decoder layers.
        layout: of each layer.
    """

    def __init__(self, num_layers: int, layout: CacheLayout) -> None:
        self.num_layers = num_layers
        self.layout = layout
        self.length = 0
        # By the name of the graph input: layer by layer, part by part.
        self._parts = {
            part.input(layer): part for layer in range(num_layers) for part in layout.parts
        }
        self._buffers: dict[str, npt.NDArray[Any]] = {
            name: np.empty((1, 0, part.width), part.dtype) for name, part in self._parts.items()
        }
        # All caches that use these buffers, this one included.
        self._sharers: weakref.WeakSet[LatentCache] = weakref.WeakSet([self])

    @property
    def capacity(self) -> int:
        """Tokens there is room for without growing."""
        return min(int(buffer.shape[1]) for buffer in self._buffers.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes one token takes in all layers."""
        return self.num_layers * sum(part.token_bytes for part in self.layout.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, unused room included."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def rows(self) -> dict[str, npt.NDArray[Any]]:
        """The rows in use, [S, width] by name of the graph input: views, until the cache grows."""
        return self.rows_at(0, self.length)

    def rows_at(self, first: int, count: int) -> dict[str, npt.NDArray[Any]]:
        """Rows that a graph has written, in use or behind those, [count, width]: views."""
        chosen = slice(first, first + count)
        return {name: buffer[0, chosen] for name, buffer in self._buffers.items()}

    def bind_to(self, binding: StateBinding, length: int, slot: int | None = None) -> None:
        """Let a graph read and write the first ``length`` rows; to be repeated once it grew.

        Args:
            binding: of the graph.
            length: rows.
            slot: of a graph that reads several contexts.
        """
        for layer in range(self.num_layers):
            for part in self.layout.parts:
                names = part.input(layer), part.output(layer)
                if slot is not None:
                    names = in_slot(names[0], slot), in_slot(names[1], slot)
                shape = (1, length, part.width)
                address = int(self._buffers[part.input(layer)].ctypes.data)
                binding.bind_input_at(names[0], part.dtype, shape, address)
                binding.bind_output_at(names[1], part.dtype, shape, address)

    @property
    def is_shared(self) -> bool:
        """Whether a fork uses the same buffers, so that the next new row copies them."""
        return len(self._sharers) > 1

    def fork(self) -> LatentCache:
        """Another cache with the same rows; costs nothing until one of the two is written to."""
        other = LatentCache(self.num_layers, self.layout)
        other.length = self.length
        other._buffers = dict(self._buffers)
        other._sharers = self._sharers
        self._sharers.add(other)
        return other

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens in all, growing by half at least; rows in use stay.

        Whoever writes rows calls this first: it is what keeps forks apart.

        Raises:
            InputError: more than the layout allows.
            RuntimeFailure: there is not enough memory.
        """
        if length > self.layout.max_length:
            raise too_long(length, self.layout.max_length)
        if length <= self.capacity and not self.is_shared:
            return
        # A fork needs no more room than its own rows, whatever the other one had.
        room = self.length if self.is_shared else self.capacity
        grown = max(length, int(room * _GROWTH), _SMALLEST_CAPACITY)
        self._move(min(grown, self.layout.max_length))

    def _move(self, capacity: int) -> None:
        """Take new buffers with room for ``capacity`` tokens."""
        self._check_memory(capacity)
        # One buffer after the other: the rows of at most one exist twice.
        for name, old in list(self._buffers.items()):
            try:
                new = np.empty((1, capacity, old.shape[2]), old.dtype)
            except MemoryError as error:
                raise self._no_memory(capacity) from error
            new[:, : self.length] = old[:, : self.length]
            self._buffers[name] = new
        self._sharers.discard(self)
        self._sharers = weakref.WeakSet([self])

    def advance(self, count: int) -> None:
        """Count ``count`` more rows as in use, which a graph has just written."""
        assert self.length + count <= self.capacity, "rows advanced beyond the buffers"
        self.length += count

    def rewind(self, length: int) -> None:
        """Forget all rows from ``length`` on; the room stays.

        Raises:
            InputError: ``length`` is negative or more than what is in use.
        """
        if not 0 <= length <= self.length:
            raise InputError(f"context: cannot rewind to {length}, it holds {self.length} tokens")
        self.length = length

    def restore(self, rows: Arrays) -> None:
        """Hold these rows instead, as ``rows`` returned them; used, not copied.

        Raises:
            UnexpectedArrays: they are no such rows.
        """
        count = row_count(rows, next(iter(self._parts)))
        forms = {name: (part.dtype, (count, part.width)) for name, part in self._parts.items()}
        require_arrays(rows, forms)
        self._buffers = {name: np.ascontiguousarray(rows[name])[None] for name in self._parts}
        self._sharers = weakref.WeakSet([self])
        self.length = count

    def _check_memory(self, capacity: int) -> None:
        # np.empty succeeds far beyond what exists, and the process would be killed later.
        memory = read_memory()
        kept = 0 if self.is_shared else self.length
        needed = (capacity - kept) * self.bytes_per_token
        if memory is not None and needed > memory.available_bytes:
            raise self._no_memory(capacity)

    def _no_memory(self, capacity: int) -> RuntimeFailure:
        megabytes = capacity * self.bytes_per_token / 1e6
        return RuntimeFailure(
            f"latent cache: {capacity} tokens take {megabytes:.0f} MB, more than is free; use a "
            "shorter context, a cache of a smaller type, or free memory"
        )
