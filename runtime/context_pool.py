"""A pool of contexts: a prompt that starts like an earlier one is not read again."""

from __future__ import annotations

import threading

from shoal.graphs.errors import InputError
from shoal.runtime.engine.context import Context
from shoal.runtime.engine.token_ids import TokenIds, check_tokens
from shoal.runtime.model import Model


class ContextPool:
    """Contexts kept for prompts to come. May be used from several threads.

    Args:
        model: whose contexts they are.
        max_bytes: latent caches kept in all; the least recently used go first.

    Raises:
        InputError: ``max_bytes`` is negative.
    """

    def __init__(self, model: Model, max_bytes: int) -> None:
        if max_bytes < 0:
            raise InputError(f"max_bytes must be at least 0, found {max_bytes}")
        self._model = model
        self._max_bytes = max_bytes
        self._contexts: list[Context] = []  # the least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._contexts)

    @property
    def nbytes(self) -> int:
        """Bytes of all latent caches kept, counted for each that shares them."""
        return sum(context.nbytes for context in self._contexts)

    def take(self, ids: TokenIds) -> Context:
        """A context for a prompt, the caller's until it is given back.

        It holds the longest start of ``ids`` that any context of the pool holds. A context that
        holds other tokens after it stays in the pool; what is returned then is a fork.

        Raises:
            InputError: ids are no ids of this vocabulary.
        """
        tokens = check_tokens(ids, self._model.manifest.model.vocab_size)
        with self._lock:
            prefixes = [context.common_prefix(tokens) for context in self._contexts]
            longest = max(prefixes, default=0)
            if longest == 0:
                return self._model.new_context()
            found = self._contexts.pop(prefixes.index(longest))
            if longest == found.position:
                return found
            self._contexts.append(found)
            fork = found.fork()
        fork.rewind(longest)
        return fork

    def give_back(self, context: Context) -> None:
        """Keep a context for later prompts, and let go of others to stay within the budget."""
        with self._lock:
            if context.position and not any(context is kept for kept in self._contexts):
                self._contexts.append(context)
            while self._contexts and self.nbytes > self._max_bytes:
                del self._contexts[0]
