"""The drafter: the multi-token-prediction module guesses the tokens after the next one.

T rows   D hidden_size   W vocab_size

A row of the module's cache stands for a token that was read and the hidden state of the token
before it. What the module says only ever proposes tokens, so a missing row (the hidden state was
not kept when a context was rewound) costs accepted drafts, never a right answer.

Source: DeepSeek-V3 (arXiv 2412.19437), section 2.2: at position i the module takes hidden state
i-1 and token i and predicts token i+1; chained, its own hidden state takes the place of the
decoder's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.graphs.manifest import ModelInfo
from shoal.runtime.engine.arrays import (
    Arrays,
    Form,
    require_arrays,
    require_below,
    row_count,
    take_arrays,
)
from shoal.runtime.engine.latent_cache import LatentCache
from shoal.runtime.engine.layer_state import CacheLayout
from shoal.runtime.engine.session import GraphSession
from shoal.runtime.engine.step import SMALLEST_CHUNK, Chunk, FloatArray, chunk_length

_WAITING_BATCH = 512  # rows computed at a time when all are kept
# Rows kept of a prompt when not all are: computing them is the price of the first draft, 1.3 plain
# steps of the tiny model for 64 rows. Its first drafts come true as often after 8 to 64 rows (55 to
# 56 % of 150), hardly less often than after 256 (59 %).
_WAITING_KEPT = 16


class _Row(NamedTuple):
    """What goes into the module for one token."""

    position: int
    token: int
    hidden: FloatArray  # [D] of the token before it


class Drafter:
    """The module and its cache, kept in step with one context as one of its observers.

    Args:
        info: the model.
        mtp: the module's graph.
        head: the graph that turns hidden states into logits.
        layout: of the module's latent cache, as its graph has it.
    """

    wants_routing = False

    def __init__(
        self, info: ModelInfo, mtp: GraphSession, head: GraphSession, layout: CacheLayout
    ) -> None:
        self._info = info
        self._graphs = mtp, head
        self._mtp = mtp.new_binding()
        self._head = head.new_binding()
        self.cache = LatentCache(1, layout)
        self.keeps_all = True
        """Whether rows are computed however many wait; else the oldest are left out."""
        self._rows: list[tuple[int, int]] = []  # position and token of each row of the cache
        # Read but not looked at yet: position of the first, tokens, hidden states [T,D].
        self._seen: deque[tuple[int, Sequence[int], FloatArray]] = deque(maxlen=_WAITING_KEPT + 1)
        self._waiting: list[_Row] = []  # rows to compute before the next draft
        self._recent_first = 0  # position of the first of the hidden states kept
        self._recent_TD = np.empty((0, info.hidden_size), np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of the module's latent cache; see ``LatentCache.nbytes``."""
        return self.cache.nbytes

    def observe(self, chunk: Chunk) -> None:
        """Record tokens that the context has read."""
        first, tokens, hidden_TD, _ = chunk
        # One token more than rows are kept, for the hidden state before the first of them.
        left_out = 0 if self.keeps_all else len(tokens) - _WAITING_KEPT - 1
        if left_out > 0:
            first, tokens, hidden_TD = first + left_out, tokens[left_out:], hidden_TD[left_out:]
        self._seen.append((first, tokens, hidden_TD.copy()))
        # Automatic drafts are off at most tokens: there, what can wait for a draft does.
        if self.keeps_all:
            self._take_in()
            if len(self._waiting) >= _WAITING_BATCH:
                self._compute_waiting()

    def propose(self, position: int, token: int, count: int) -> list[int]:
        """Guess what follows.

        Args:
            position: number of tokens the context has read.
            token: the one it will read next.
            count: tokens to guess.

        Returns:
            ``count`` tokens, or none where the hidden state of the last token is not known.
        """
        self._take_in()
        before_D = self._hidden_before(position)
        if before_D is None or count == 0:
            return []
        self._forget_from(position)
        self._waiting.append(_Row(position, token, before_D))
        hidden_D = self._compute_waiting()
        drafts = [self._best(hidden_D)]
        while len(drafts) < count:
            # These rows hold guesses: the cache is rewound behind them.
            at = position + len(drafts)
            hidden_D = self._compute([_Row(at, drafts[-1], hidden_D)])
            drafts.append(self._best(hidden_D))
        self.cache.rewind(len(self._rows))
        return drafts

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first ``length``."""
        self._take_in()
        self._forget_from(length)
        self._recent_TD = self._recent_TD[: max(0, length - self._recent_first)]

    def fork(self) -> Drafter:
        """Another one in the same state."""
        self._take_in()
        other = Drafter(self._info, *self._graphs, self.cache.layout)
        other.keeps_all = self.keeps_all
        other.cache = self.cache.fork()
        other._rows = list(self._rows)
        other._waiting = list(self._waiting)
        other._recent_first, other._recent_TD = self._recent_first, self._recent_TD
        return other

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything needed to go on in another process, as arrays by name."""
        self._take_in()
        waiting = [(row.position, row.token) for row in self._waiting]
        hidden = [row.hidden for row in self._waiting]
        width = self._info.hidden_size
        return {
            "rows": np.array(self._rows, np.int64).reshape(-1, 2),
            **self.cache.rows(),
            "waiting": np.array(waiting, np.int64).reshape(-1, 2),
            "waiting_hidden": np.array(hidden, np.float32).reshape(-1, width),
            "recent": np.array([self._recent_first], np.int64),
            "recent_hidden": self._recent_TD,
        }

    def restore(self, state: Arrays) -> None:
        """Take over what ``state`` returned; the arrays are used, not copied.

        Raises:
            UnexpectedArrays: it is no such state.
        """
        cache_rows = dict(state)
        own = take_arrays(
            cache_rows, "rows", "waiting", "waiting_hidden", "recent", "recent_hidden"
        )
        self.cache.restore(cache_rows)
        waiting, width = row_count(own, "waiting"), self._info.hidden_size
        forms: dict[str, Form] = {
            "rows": ("int64", (self.cache.length, 2)),
            "waiting": ("int64", (waiting, 2)),
            "waiting_hidden": ("float32", (waiting, width)),
            "recent": ("int64", (1,)),
            "recent_hidden": ("float32", (row_count(own, "recent_hidden"), width)),
        }
        require_arrays(own, forms)
        known = np.concatenate([own["rows"], own["waiting"]])
        require_below(known, (self.cache.layout.max_length, self._info.vocab_size))
        self._rows = [(position, token) for position, token in own["rows"].tolist()]
        pairs = zip(own["waiting"].tolist(), own["waiting_hidden"], strict=True)
        self._waiting = [_Row(position, token, hidden) for (position, token), hidden in pairs]
        self._recent_first = int(own["recent"][0])
        self._recent_TD = own["recent_hidden"]

    def _take_in(self) -> None:
        """Make rows of what was seen."""
        for first, tokens, hidden_TD in self._seen:
            for index, token in enumerate(tokens):
                before_D = hidden_TD[index - 1] if index else self._hidden_before(first)
                if before_D is not None and (first + index, token) not in self._rows[-1:]:
                    self._forget_from(first + index)
                    self._waiting.append(_Row(first + index, token, before_D))
            self._recent_first, self._recent_TD = first, hidden_TD
        self._seen.clear()
        if not self.keeps_all:
            del self._waiting[:-_WAITING_KEPT]

    def _hidden_before(self, position: int) -> FloatArray | None:
        index = position - 1 - self._recent_first
        return self._recent_TD[index] if 0 <= index < len(self._recent_TD) else None

    def _forget_from(self, position: int) -> None:
        while self._waiting and self._waiting[-1].position >= position:
            self._waiting.pop()
        while self._rows and self._rows[-1][0] >= position:
            self._rows.pop()
        self.cache.rewind(len(self._rows))

    def _compute_waiting(self) -> FloatArray:
        """Run the module on the rows that wait. Returns the hidden state [D] of the last one."""
        while self._waiting:
            score_bytes = self._graphs[0].score_bytes(self._info)
            count = chunk_length(self.cache.length, len(self._waiting), score_bytes)
            rows = self._waiting[:count]
            hidden_D = self._compute(rows)
            self._rows += [(row.position, row.token) for row in rows]
            del self._waiting[:count]
        return hidden_D

    def _compute(self, rows: Sequence[_Row]) -> FloatArray:
        """Add rows to the cache. Returns the hidden state [D] of the last one."""
        count, cache = len(rows), self.cache
        cache.reserve(cache.length + count)
        out_TD = np.empty((count, self._info.hidden_size), np.float32)
        binding = self._mtp
        binding.clear()
        binding.bind_input("input_ids", np.array([[row.token for row in rows]], np.int64))
        binding.bind_input("position_ids", np.array([[row.position for row in rows]], np.int64))
        binding.bind_input("hidden", np.stack([row.hidden for row in rows])[None])
        binding.bind_output("hidden_out", out_TD[None])
        cache.bind_to(binding, cache.length + count)
        binding.run(release_memory=count > SMALLEST_CHUNK)
        cache.advance(count)
        last_D: FloatArray = out_TD[-1]
        return last_D

    def _best(self, hidden_D: FloatArray) -> int:
        logits_W = np.empty(self._info.vocab_size, np.float32)
        self._head.bind_input("hidden", hidden_D[None, None])
        self._head.bind_output("logits", logits_W[None, None])
        self._head.run()
        return int(np.argmax(logits_W))
