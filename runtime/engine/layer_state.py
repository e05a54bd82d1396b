"""The state of layers: what attention keeps of the tokens a context has read.

Multi-head latent attention keeps a row of each token, in a ``LatentCache``: the only kind there is
so far. Contexts and batch steps ask for no more than what ``LayerState`` says.

A state of fixed size, as linear attention has it, has no rows to forget. Such a kind would have to
take snapshots (at least where ``reserve`` is called, since what is written behind that may be
dropped), to say in ``rewind`` how far back the last usable one is, so that the context reads what
follows again, and to give in ``rows_at`` what stood after a token. A model with layers of both
kinds has one such object for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy.typing as npt

from shoal.graphs.cache_types import CachePart, CacheType
from shoal.graphs.errors import InputError
from shoal.runtime.engine.arrays import Arrays


@dataclass(frozen=True, kw_only=True)
class CacheLayout:
    """What the latent caches of a model are like. Each opened model has an object of its own."""

    type: CacheType
    parts: tuple[CachePart, ...]  # of one layer
    max_length: int  # tokens; a cache never gets room for more


class StateBinding(Protocol):
    """Takes addresses for a graph; see ``session.Binding``."""

    def bind_input_at(
        self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...], address: int
    ) -> None:
        """Let the graph read an input there."""
        ...

    def bind_output_at(
        self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...], address: int
    ) -> None:
        """Let the graph write an output there."""
        ...


class LayerState(Protocol):
    """What the layers of one graph keep for one context.

    A step reserves room, is bound to it, and its tokens count once ``advance`` is called; until
    then they can be forgotten by doing something else.
    """

    length: int
    """Tokens that count."""

    @property
    def layout(self) -> CacheLayout:
        """What it is like."""
        ...

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token more takes."""
        ...

    @property
    def nbytes(self) -> int:
        """All bytes, unused room and what is shared with forks included."""
        ...

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens in all; whoever writes calls this first.

        Raises:
            InputError: more than the layout allows.
            RuntimeFailure: there is not enough memory.
        """
        ...

    def bind_to(self, binding: StateBinding, length: int, slot: int | None = None) -> None:
        """Let a graph read the tokens that count and write those up to ``length``.

        Args:
            binding: of the graph.
            length: tokens after the step; room for them is reserved.
            slot: of a graph that reads several contexts.
        """
        ...

    def advance(self, count: int) -> None:
        """Count ``count`` tokens more, which a graph has just written."""
        ...

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first ``length``.

        Raises:
            InputError: there are not as many.
        """
        ...

    def fork(self) -> LayerState:
        """The same state for another context."""
        ...

    def rows(self) -> Arrays:
        """What is saved, by the names of the graph's inputs: views, until the next ``reserve``."""
        ...

    def rows_at(self, first: int, count: int) -> Arrays:
        """What ``count`` tokens left behind, written but not necessarily counted: views."""
        ...

    def restore(self, rows: Arrays) -> None:
        """Hold what ``rows`` returned instead; the arrays may be used without copying them.

        Raises:
            UnexpectedArrays: it is no such state.
        """
        ...


def too_long(length: int, limit: int) -> InputError:
    """The refusal of more tokens than a context can hold."""
    return InputError(
        f"context: {length} tokens are more than the model's {limit} (max_position_embeddings or "
        "max_context); shorten the prompt or start a new context"
    )
