"""What a chat template may use while it renders one conversation: work, memory, time and depth.

Work is counted in bytes: each value that a template makes counts as many as it takes, and each
step (a call, a filter, a comparison, a turn of a loop) as many as ``STEP_BYTES``. A value that is
held twice counts twice, because it does so wherever it is written or compared.
"""

from __future__ import annotations

import sys
import time
from typing import Any

STEP_BYTES = 64
"""A step counts as this many bytes, so that the bound on bytes is one of steps too."""

BASE_BYTES = 64 << 20
"""What a template may use for the shortest conversation: also a million steps."""

BYTES_PER_INPUT_BYTE = 64
"""And for each byte of messages; the families' templates use at most 16."""

RENDER_S = 5.0
"""Seconds of this thread's processor time; 1 MB of text takes the families' templates 0.1 s."""

LARGEST_DEPTH = 100
"""Containers within containers; calls of macros and recursive loops within each other."""

_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS: Any = (list, tuple, dict, *_VIEWS)
_LONGEST_REPR = 16  # bytes that a byte of text can become within the repr of a container


class OverBudget(Exception):
    """The template uses more than it may."""


class Budget:
    """What is left for one rendering; it belongs to one thread.

    Args:
        given: the messages and all else the template is given.
    """

    def __init__(self, given: object) -> None:
        self._left = sys.maxsize
        self._left = BASE_BYTES + BYTES_PER_INPUT_BYTE * self.size_of(given)
        self._depth = 0
        self._started_s = time.thread_time()
        self._look_again_s = time.monotonic() + RENDER_S

    def spend(self, size: int) -> None:
        """Count bytes of work.

        Raises:
            OverBudget: there are not as many left, or time is up.
        """
        self._left -= size
        if self._left < 0:
            raise OverBudget("takes too many steps or too much memory")
        if time.monotonic() > self._look_again_s:
            self._check_time()

    def expect(self, size: int) -> None:
        """Refuse what would take more bytes than are left, before it is done."""
        if size > self._left:
            raise OverBudget("takes too much memory")

    def made(self, value: object) -> None:
        """Count a step and the value it made."""
        self.spend(STEP_BYTES + self.size_of(value))

    def expect_text_of(self, *values: object) -> None:
        """Refuse values whose texts may take more bytes than are left."""
        for value in values:
            factor = 1 if isinstance(value, str) else _LONGEST_REPR
            self.expect(factor * self.size_of(value))

    def enter_call(self) -> None:
        """Count a call that begins; ``leave_call`` ends it."""
        self.spend(STEP_BYTES)
        if self._depth == LARGEST_DEPTH:
            raise OverBudget(f"calls macros more than {LARGEST_DEPTH} deep")
        self._depth += 1

    def leave_call(self) -> None:
        """See ``enter_call``."""
        self._depth -= 1

    def size_of(self, value: object) -> int:
        """Bytes of a value with all that it holds.

        Raises:
            OverBudget: it is larger than what is left, or too deep.
        """
        if not isinstance(value, _CONTAINERS):
            return sys.getsizeof(value)
        size = 0
        level: list[Any] = [value]
        for _ in range(LARGEST_DEPTH):
            inner: list[Any] = []
            for item in level:
                size += sys.getsizeof(item)
                if isinstance(item, _CONTAINERS):
                    self.expect(size)  # a list may be in another a million times
                    inner += [*item.keys(), *item.values()] if isinstance(item, dict) else item
            self.expect(size)
            if not inner:
                return size
            level = inner
        raise OverBudget(f"nests values more than {LARGEST_DEPTH} deep")

    def _check_time(self) -> None:
        # A busy machine may have given this thread little of the time that has passed.
        left_s = RENDER_S - (time.thread_time() - self._started_s)
        if left_s < 0:
            raise OverBudget(f"takes more than {RENDER_S:.0f} s")
        self._look_again_s = time.monotonic() + left_s
