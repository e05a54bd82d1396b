"""How long a message may be, whatever a file or a name from anywhere has put into it."""

from __future__ import annotations

LONGEST_MESSAGE = 1000
"""Characters."""

_END = 300
_CUT = " ... "


def bounded(text: str) -> str:
    """A message cut in the middle: it begins with the place and ends with what to do."""
    if len(text) <= LONGEST_MESSAGE:
        return text
    return text[: LONGEST_MESSAGE - _END - len(_CUT)] + _CUT + text[-_END:]


def bounded_line(text: str) -> str:
    """A message in one line, whatever it holds, cut as ``bounded`` does."""
    return bounded(" ".join(text.split()))
