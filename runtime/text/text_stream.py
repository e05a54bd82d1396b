"""Tokens to text while they are being decided: whole characters, and never half a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.graphs.errors import InputError
from shoal.runtime.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 4  # bytes, and so at most as many tokens


class TextStream:
    """Turns a stream of tokens into pieces of text that add up to the text of all of them.

    A token may end inside a character; it is then held until the character is complete.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Text depends on neighbours (a decoder may drop the first space), so tokens are decoded
        # together with those since the last but one place where everything was complete.
        self._start = 0
        self._complete = 0
        self._emitted = 0  # characters of the text from _start on

    def push(self, token: int) -> str:
        """Add a token. Returns the text that became certain, often empty."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids[self._start :])
        if not text.endswith(_REPLACEMENT):
            piece = text[self._emitted :]
            self._start, self._complete = self._complete, len(self._ids)
            self._emitted = len(self._tokenizer.decode(self._ids[self._start :]))
            return piece
        if len(self._ids) - self._complete < _LONGEST_CHARACTER:
            return ""
        # More tokens than one character can take: these bytes are no text. The last may be yet.
        piece = text[self._emitted : -1]
        self._emitted += len(piece)
        return piece

    def finish(self) -> str:
        """The text still held, an incomplete character as U+FFFD."""
        piece = self._tokenizer.decode(self._ids[self._start :])[self._emitted :]
        self._emitted += len(piece)
        return piece


class StopFilter:
    """Passes text on until a stop string is complete; what may become one is held.

    Args:
        stops: the stop strings; none passes everything.

    Raises:
        InputError: a stop string is no text or empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise InputError(f"stop must be a list of texts that are not empty, found {stops!r}")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Add text. Returns what can be shown; after a stop string, nothing any more."""
        if self.stopped:
            return ""
        self._held += piece
        found = [
            (start + len(stop), start)
            for stop in self._stops
            if (start := self._held.find(stop)) >= 0
        ]
        if found:
            # The one that ends first, as if the text had come letter by letter.
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """The text still held, which has not become a stop string."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that ``stop`` begins with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
