"""Bytes that come in pieces, split into lines of a bounded length."""

from __future__ import annotations

from collections import deque

from shoal.runtime.server.line_requests import LONGEST_LINE_BYTES


class LineBuffer:
    """Splits what comes in pieces into lines, and holds no more than one line that is too long."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._lines: deque[bytes | None] = deque()
        self._is_too_long = False  # the line that ``rest`` would continue

    @property
    def has_line(self) -> bool:
        """Whether ``take`` has something to return."""
        return bool(self._lines)

    def feed(self, data: bytes) -> None:
        """Add what has come."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._end_line(line)
        self._extend(rest)

    def finish(self) -> None:
        """What came after the last line break is a line too."""
        if self._rest or self._is_too_long:
            self._end_line(b"")

    def take(self) -> bytes | None:
        """The oldest line, None for one that was too long."""
        return self._lines.popleft()

    def _extend(self, data: bytes) -> None:
        self._rest += data
        if len(self._rest) > LONGEST_LINE_BYTES + 1:  # with a carriage return
            self._rest.clear()
            self._is_too_long = True

    def _end_line(self, data: bytes) -> None:
        self._extend(data)
        line = bytes(self._rest).removesuffix(b"\r")
        too_long = self._is_too_long or len(line) > LONGEST_LINE_BYTES
        self._lines.append(None if too_long else line)
        self._rest.clear()
        self._is_too_long = False
