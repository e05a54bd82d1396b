"""How many tokens to draft: a fixed number, or whatever pays by what was measured.

A round is one step of the decoder that reads a decided token and n drafts of what follows it. It
decides 1 + (accepted drafts) tokens. With a_i the share of rounds that accept draft i among those
that accept the ones before it, n drafts pay if (1 + a_1 + a_1 a_2 + ...) / (seconds of a round) is
more than 1 / (seconds of a round without drafts).
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from typing import Protocol

LONGEST_AUTO_DRAFT = 3
"""Drafts the automatic choice tries at most: a module trained for one draft guesses worse further
on, and each further draft makes every step more expensive."""

_GAIN_TO_START = 1.06  # a smaller gain may be the noise of few measurements
_GAIN_TO_STAY = 1.03
_TIMES_KEPT = 15  # latest rounds of a length; their median is taken for its time
_FORGET = 0.95  # what a round counts for the acceptance after the next one
_WARM_UP_ROUNDS = 8
_ROUNDS_PER_TRIAL = 3  # the first of which is not timed
_ROUNDS_PER_THOUGHT = 8  # plain rounds before drafts are considered again
_ROUNDS_TO_STALE = 64  # after so many others a length is timed again: depth and text have changed
_GAIN_KEPT_ROUNDS = 8.0  # plain rounds that drafts have saved and later trials may lose: 3 % of 256
_FREE_TRIAL_ROUNDS = 2.0  # plain rounds that trials may cost from the start ...
_TRIAL_SHARE = 0.005  # ... and the share of all time that they may cost in the long run


class DraftPolicy(Protocol):
    """Chooses the drafts of each round and is told what came of it."""

    def choose(self, most: int) -> int:
        """Drafts for the next round, at most ``most``."""
        ...

    def record(self, drafts: int, accepted: int, seconds: float, audit_s: float) -> None:
        """Record a round; ``audit_s`` are seconds spent on top to compare it."""
        ...


class FixedDraft:
    """Always the same number."""

    def __init__(self, drafts: int) -> None:
        self._drafts = drafts

    def choose(self, most: int) -> int:
        """See ``DraftPolicy``."""
        return min(self._drafts, most)

    def record(self, drafts: int, accepted: int, seconds: float, audit_s: float) -> None:
        """See ``DraftPolicy``."""


class AutoDraft:
    """Drafts where they pay.

    Lengths are tried a few rounds at a time. What drafts lose and save against plain decoding is
    counted: a trial starts only while the loss is within its share of the time, and ends early once
    it is not. So text on which drafts are useless is hardly slower, and they are tried again now
    and then.

    One serves all texts of an opened model: what steps cost is a matter of the model and the
    machine, and trials are paid for once, not in every short answer. May be used from several
    threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        lengths = range(LONGEST_AUTO_DRAFT + 1)
        self._seconds: list[deque[float]] = [deque(maxlen=_TIMES_KEPT) for _ in lengths]
        # Accepted and all, decaying; they start as one round of two.
        self._hits = [1.0] * LONGEST_AUTO_DRAFT
        self._trials = [2.0] * LONGEST_AUTO_DRAFT
        self._spent_s = 0.0
        self._lost_s = 0.0
        self._plan: tuple[int, int] = (0, _WARM_UP_ROUNDS)  # drafts, rounds left
        self._is_on = False
        self._rounds = 0
        self._last_used = [0 for _ in lengths]  # round in which a length was

    def choose(self, most: int) -> int:
        """See ``DraftPolicy``."""
        with self._lock:
            if self._plan[1] == 0:
                self._plan = self._next()
            return min(self._plan[0], most)

    def record(self, drafts: int, accepted: int, seconds: float, audit_s: float) -> None:
        """See ``DraftPolicy``."""
        with self._lock:
            self._rounds += 1
            if self._last_used[drafts] == self._rounds - 1:
                # The first round of another length is slower: 13 to 28 % were measured.
                self._seconds[drafts].append(seconds)
            self._last_used[drafts] = self._rounds
            self._spent_s += seconds
            planned, left = self._plan
            self._plan = planned, max(0, left - 1)
            if drafts:
                self._record_drafts(drafts, accepted, seconds + audit_s)

    def best(self) -> int:
        """The number of drafts that decides the most tokens per second, as far as is known."""
        known = [n for n, times in enumerate(self._seconds) if times]
        drafts = max(known, key=self._tokens_per_s, default=0)
        gain = _GAIN_TO_STAY if self._is_on else _GAIN_TO_START
        if drafts and self._tokens_per_s(drafts) < gain * self._tokens_per_s(0):
            return 0
        return drafts

    def _record_drafts(self, drafts: int, accepted: int, seconds: float) -> None:
        for index in range(min(accepted + 1, drafts)):
            self._hits[index] = _FORGET * self._hits[index] + (index < accepted)
            self._trials[index] = _FORGET * self._trials[index] + 1
        plain_s = self._time(0)
        loss_s = seconds - (1 + accepted) * plain_s
        self._lost_s = max(-_GAIN_KEPT_ROUNDS * plain_s, self._lost_s + loss_s)
        if self._lost_s > self._allowed_s():
            self._plan = 0, 0  # think again

    def _next(self) -> tuple[int, int]:
        """Drafts, and rounds to use them for."""
        best = self.best()
        self._is_on = best > 0
        if best and self._age(0) > _ROUNDS_TO_STALE:
            return 0, _ROUNDS_PER_TRIAL
        longer = best + 1
        if best < LONGEST_AUTO_DRAFT and self._is_unknown(longer) and self._may_try(longer):
            return longer, _ROUNDS_PER_TRIAL
        return best, 1 if best else _ROUNDS_PER_THOUGHT

    def _is_unknown(self, drafts: int) -> bool:
        return not self._is_on or not self._seconds[drafts] or self._age(drafts) > _ROUNDS_TO_STALE

    def _may_try(self, drafts: int) -> bool:
        plain_s = self._time(0)
        times = self._seconds[drafts]
        cost_s = statistics.median(times) - plain_s if times else plain_s / 2
        return self._lost_s + _ROUNDS_PER_TRIAL * max(cost_s, 0.0) <= self._allowed_s()

    def _allowed_s(self) -> float:
        return _FREE_TRIAL_ROUNDS * self._time(0) + _TRIAL_SHARE * self._spent_s

    def _age(self, drafts: int) -> int:
        return self._rounds - self._last_used[drafts]

    def _time(self, drafts: int) -> float:
        return statistics.median(self._seconds[drafts])

    def _tokens_per_s(self, drafts: int) -> float:
        tokens, share = 1.0, 1.0
        for hits, trials in zip(self._hits[:drafts], self._trials[:drafts], strict=True):
            share *= hits / trials
            tokens += share
        return tokens / max(self._time(drafts), 1e-9)
