"""A pool of contexts: a prompt that starts like an earlier one is not read again."""

from __future__ import annotations

import threading

from shoal.graphs.errors import InputError
from shoal.runtime.engine.context import Context
from shoal.runtime.engine.token_ids import TokenIds, check_tokens
from shoal.runtime.model import Model


class ContextPool:
    """Contexts kept for later prompts. May be used from several threads.

    Args:
        model: whose contexts they are.
        max_bytes: of all latent caches kept; the least recently used are dropped first.

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
        """Bytes of all latent caches kept; what contexts share counts for each of them."""
        return sum(context.nbytes for context in self._contexts)

    def take(self, ids: TokenIds) -> Context:
        """A context for a prompt, which no other caller gets until ``give_back``.

        It holds the longest start of ``ids`` that any context of the pool holds. If that context
        holds other tokens after it, it stays in the pool and a fork is returned.

        Raises:
            InputError: an id is not in the vocabulary.
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
        """Keep a context for later prompts, and drop others to stay within ``max_bytes``."""
        with self._lock:
            if context.position and not any(context is kept for kept in self._contexts):
                self._contexts.append(context)
            while self._contexts and self.nbytes > self._max_bytes:
                del self._contexts[0]
