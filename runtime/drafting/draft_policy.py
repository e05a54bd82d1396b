"""How many tokens to draft: a fixed number, or whatever pays by what was measured.

A round is one step of the decoder that reads a decided token and n drafts of what follows it. It
decides 1 + (accepted drafts) tokens. With a_i the share of rounds that accept draft i among those
that accept the ones before it, n drafts pay if (1 + a_1 + a_1 a_2 + ...) / (seconds of a round) is
more than 1 / (seconds of a round without drafts).
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import Protocol

LONGEST_AUTO_DRAFT = 3
"""Drafts the automatic choice tries at most: a module trained for one draft guesses worse further
on, and each one more makes every step dearer."""

_GAIN_TO_START = 1.06  # a smaller gain may be the noise of few measurements
_GAIN_TO_STAY = 1.02
_TIMES_KEPT = (
    15  # the median of so many rounds stands for a length; odd, and old ones count no more
)
_FORGET = 0.95  # what a round counts for the acceptance after the next one
_WARM_UP_ROUNDS = 8
_ROUNDS_PER_TRIAL = 3
_ROUNDS_TO_STALE = 32  # after so many others a length is timed again: depth and text have changed
_FREE_TRIAL_ROUNDS = 2.0  # plain rounds that trials may cost from the start ...
_TRIAL_SHARE = 0.01  # ... and the share of all time that they may cost in the long run


class DraftPolicy(Protocol):
    """Chooses the drafts of each round and is told what came of it."""

    def choose(self, most: int) -> int:
        """Drafts for the next round, at most ``most``."""
        ...

    def record(self, drafts: int, accepted: int, seconds: float, audit_s: float) -> None:
        """Take note of a round; ``audit_s`` are seconds spent on top to compare it."""
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

    Lengths are tried a few rounds at a time. What trials lose against plain decoding is counted,
    and a new one starts only while the loss is within its share of the time, so text on which
    drafts are useless is hardly slower, and is tried again now and then.
    """

    def __init__(self) -> None:
        lengths = range(LONGEST_AUTO_DRAFT + 1)
        self._seconds: list[deque[float]] = [deque(maxlen=_TIMES_KEPT) for _ in lengths]
        # Accepted and all, decaying; they start as one round of two.
        self._hits = [1.0] * LONGEST_AUTO_DRAFT
        self._trials = [2.0] * LONGEST_AUTO_DRAFT
        self._spent_s = 0.0
        self._lost_s = 0.0
        self._trial: tuple[int, int] = (0, _WARM_UP_ROUNDS)  # drafts, rounds left
        self._is_on = False
        self._ages = [0 for _ in lengths]  # rounds since a length was last used

    def choose(self, most: int) -> int:
        """See ``DraftPolicy``."""
        drafts, left = self._trial
        if left == 0:
            drafts = self._next()
        return min(drafts, most)

    def record(self, drafts: int, accepted: int, seconds: float, audit_s: float) -> None:
        """See ``DraftPolicy``."""
        if drafts > LONGEST_AUTO_DRAFT:
            return
        self._seconds[drafts].append(seconds)
        for index in range(min(accepted + 1, drafts)):
            self._hits[index] = _FORGET * self._hits[index] + (index < accepted)
            self._trials[index] = _FORGET * self._trials[index] + 1
        self._spent_s += seconds
        self._ages = [age + 1 for age in self._ages]
        self._ages[drafts] = 0
        if drafts:
            plain_s = (1 + accepted) * self._time(0) if self._seconds[0] else seconds
            self._lost_s = max(0.0, self._lost_s + seconds + audit_s - plain_s)
        tried, left = self._trial
        self._trial = tried, max(0, left - 1)

    def best(self) -> int:
        """The number of drafts that decides the most tokens per second, as far as is known."""
        known = [n for n, times in enumerate(self._seconds) if times]
        drafts = max(known, key=self._tokens_per_s, default=0)
        gain = _GAIN_TO_STAY if self._is_on else _GAIN_TO_START
        if drafts and self._tokens_per_s(drafts) < gain * self._tokens_per_s(0):
            return 0
        return drafts

    def _next(self) -> int:
        best = self.best()
        self._is_on = best > 0
        if best and self._ages[0] > _ROUNDS_TO_STALE:
            return 0
        longer = best + 1
        if best == LONGEST_AUTO_DRAFT or not self._may_try(longer):
            return best
        if best == 0 or not self._seconds[longer] or self._ages[longer] > _ROUNDS_TO_STALE:
            self._trial = longer, _ROUNDS_PER_TRIAL
            return longer
        return best

    def _may_try(self, drafts: int) -> bool:
        plain_s = self._time(0)
        times = self._seconds[drafts]
        cost_s = statistics.median(times) - plain_s if times else plain_s / 2
        allowed_s = _FREE_TRIAL_ROUNDS * plain_s + _TRIAL_SHARE * self._spent_s
        return self._lost_s + _ROUNDS_PER_TRIAL * max(cost_s, 0.0) <= allowed_s

    def _time(self, drafts: int) -> float:
        return statistics.median(self._seconds[drafts])

    def _tokens_per_s(self, drafts: int) -> float:
        tokens, share = 1.0, 1.0
        for hits, trials in zip(self._hits[:drafts], self._trials[:drafts], strict=True):
            share *= hits / trials
            tokens += share
        return tokens / max(self._time(drafts), 1e-9)
