"""The latent cache: what multi-head latent attention keeps of each token, and nothing else.

C is kv_lora_rank, R is qk_rope_head_dim, S the number of cached tokens.

For each layer there is one float32 buffer [1, capacity, C+R] whose first S rows are in use. A graph
is given the prefix [1, S, C+R] as input and as output, so a step writes its rows in place and
neither copies nor masks unused room. Growing copies rows; nothing is ever computed again.

A fork shares the buffers until one of the two makes room for new rows: everything is written
behind ``reserve``, so that is where the rows are copied.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime.memory import read_memory

_SMALLEST_CAPACITY = 64
_GROWTH = 1.5  # each row is copied about twice in all, and at most a third of the room is unused
_VALUE_BYTES = 4


class LatentCache:
    """One growing buffer of latent rows per layer.

    Args:
        num_layers: decoder layers.
        width: values per token and layer, C+R.
        max_length: tokens the model can hold; the cache never gets room for more.
    """

    def __init__(self, num_layers: int, *, width: int, max_length: int) -> None:
        self.num_layers = num_layers
        self.width = width
        self.max_length = max_length
        self.length = 0
        self._buffers = [np.empty((1, 0, width), np.float32) for _ in range(num_layers)]
        # All caches that use these buffers, this one included.
        self._sharers: weakref.WeakSet[LatentCache] = weakref.WeakSet([self])

    @property
    def capacity(self) -> int:
        """Tokens there is room for without growing."""
        return min(buffer.shape[1] for buffer in self._buffers)

    @property
    def bytes_per_token(self) -> int:
        """Bytes one token takes in all layers: (C+R) float32 values per layer."""
        return self.num_layers * self.width * _VALUE_BYTES

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, unused room included."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def rows(self, layer: int) -> npt.NDArray[np.float32]:
        """The rows in use of one layer, float32 [S, C+R]: a view, valid until the cache grows."""
        view: npt.NDArray[np.float32] = self._buffers[layer][0, : self.length]
        return view

    def rows_ahead(self, layer: int, count: int) -> npt.NDArray[np.float32]:
        """Rows behind those in use that a graph has written, float32 [count, C+R]: a view."""
        view: npt.NDArray[np.float32]
        view = self._buffers[layer][0, self.length : self.length + count]
        return view

    def address(self, layer: int) -> int:
        """Where the buffer of ``layer`` starts in memory; it moves when the cache grows."""
        return int(self._buffers[layer].ctypes.data)

    @property
    def is_shared(self) -> bool:
        """Whether a fork uses the same buffers, so that the next new row copies them."""
        return len(self._sharers) > 1

    def fork(self) -> LatentCache:
        """Another cache with the same rows; costs nothing until one of the two is written to."""
        other = LatentCache(self.num_layers, width=self.width, max_length=self.max_length)
        other.length = self.length
        other._buffers = list(self._buffers)
        other._sharers = self._sharers
        self._sharers.add(other)
        return other

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens in all, growing by half at least; rows in use stay.

        Whoever writes rows calls this first: it is what keeps forks apart.

        Raises:
            InputError: more than ``max_length``.
            RuntimeFailure: the machine has not the memory.
        """
        if length > self.max_length:
            raise InputError(
                f"context: {length} tokens are more than the model's {self.max_length}; shorten it"
            )
        if length <= self.capacity and not self.is_shared:
            return
        # A fork needs no more room than its own rows, whatever the other one had.
        room = self.length if self.is_shared else self.capacity
        grown = max(length, int(room * _GROWTH), _SMALLEST_CAPACITY)
        self._move(min(grown, self.max_length))

    def _move(self, capacity: int) -> None:
        """Take new buffers with room for ``capacity`` tokens."""
        self._check_memory(capacity)
        # One layer after the other: at most one layer's rows exist twice.
        for layer, old in enumerate(self._buffers):
            try:
                new = np.empty((1, capacity, self.width), np.float32)
            except MemoryError as error:
                raise self._no_memory(capacity) from error
            new[:, : self.length] = old[:, : self.length]
            self._buffers[layer] = new
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

    def restore(self, rows: Sequence[npt.NDArray[np.float32]]) -> None:
        """Hold these rows instead, one array float32 [S, C+R] per layer; used, not copied."""
        self._buffers = [np.ascontiguousarray(layer)[None] for layer in rows]
        self._sharers = weakref.WeakSet([self])
        self.length = len(rows[0])

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
            "shorter context or free memory"
        )
