"""Observers: they follow what a context reads, and the context does not know what for.

Drafting is one; keeping experts in memory and counting what is routed are of the same kind. An
observer belongs to one context. What several contexts share, such as a pool of experts, is an
object that their observers tell.

What an observer may rely on:

- ``observe`` is called with all tokens that the context reads while it is attached, in order, each
  once: with every chunk of a prompt, with the token of a batch step, and with tokens that were
  peeked at when they are adopted. Tokens that are only peeked at may be guesses: it never sees
  them.
- It is called between runs of the graphs, so what was routed in one chunk is known before the next
  one starts.
- Where a step fails or is interrupted, be it in the observer itself, all observers are rewound to
  where the step began.
- One thread at a time is inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

from shoal.runtime.engine.arrays import Arrays
from shoal.runtime.engine.step import Chunk


class Observer(Protocol):
    """Follows one context."""

    @property
    def wants_routing(self) -> bool:
        """Whether chunks are to hold the experts that tokens were sent to; always the same."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of what it keeps, where that grows with the context."""
        ...

    def observe(self, chunk: Chunk) -> None:
        """Record tokens that the context has read. Its arrays are to be copied if kept."""
        ...

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first ``length``, which may be more than it has seen."""
        ...

    def fork(self) -> Observer:
        """One in the same state that follows a fork of the context."""
        ...

    def state(self) -> Arrays:
        """What is saved with the context, by names of its own; empty if nothing is."""
        ...

    def restore(self, state: Arrays) -> None:
        """Take over what ``state`` returned; the arrays may be used without copying them.

        Raises:
            UnexpectedArrays: it is no such state.
        """
        ...


class Observers:
    """The observers of one context, by the names their states are saved under."""

    def __init__(self) -> None:
        self._by_name: dict[str, Observer] = {}

    @property
    def wants_routing(self) -> bool:
        """Whether one of them wants to know what is routed."""
        return any(observer.wants_routing for observer in self._by_name.values())

    @property
    def nbytes(self) -> int:
        """Bytes of what they keep."""
        return sum(observer.nbytes for observer in self._by_name.values())

    def attach(self, name: str, observer: Observer) -> None:
        """Add one, in place of any other of this name."""
        self._by_name[name] = observer

    def get(self, name: str) -> Observer | None:
        """The one of this name."""
        return self._by_name.get(name)

    def observe(self, chunk: Chunk) -> None:
        """Show tokens to all."""
        for observer in self._by_name.values():
            observer.observe(chunk)

    def rewind(self, length: int) -> None:
        """Let all forget tokens."""
        for observer in self._by_name.values():
            observer.rewind(length)

    def fork(self) -> Observers:
        """The observers of a fork."""
        other = Observers()
        other._by_name = {name: observer.fork() for name, observer in self._by_name.items()}
        return other

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What all save, with their names in front."""
        return {
            f"{name}.{part}": array
            for name, observer in self._by_name.items()
            for part, array in observer.state().items()
        }

    def take_states(self, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Arrays]:
        """Take what ``state`` returned out of ``arrays``. Returns the states by observer."""
        states: dict[str, Arrays] = {}
        for name in self._by_name:
            prefix = f"{name}."
            parts = [each for each in arrays if each.startswith(prefix)]
            states[name] = {each.removeprefix(prefix): arrays.pop(each) for each in parts}
        return states

    def restore(self, states: Mapping[str, Arrays]) -> None:
        """Give each its state.

        Raises:
            UnexpectedArrays: one is no such state.
        """
        for name, state in states.items():
            self._by_name[name].restore(state)
