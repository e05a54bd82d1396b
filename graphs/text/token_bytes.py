"""The bytes of a single token, which may be half a character.

A tokenizer's decoder turns many tokens into text. What it does with each of them is undone here
without going through text, which has no half characters.
"""

from __future__ import annotations

import re

from shoal.graphs.text.byte_letters import byte_letters
from shoal.graphs.text.fields import Fields
from shoal.graphs.text.growth import parts

_BYTE = re.compile("<0x([0-9A-F]{2})>")
_BLANK = "\u2581"


class TokenBytes:
    """How the tokens of a vocabulary are spelled.

    Args:
        decoder: of a tokenizer.json, None if it has none.

    Raises:
        FieldError: its fields are wrong.
    """

    def __init__(self, decoder: Fields | None) -> None:
        self._letters: dict[str, int] = {}  # the byte that each stands for
        self._has_bytes = False  # tokens such as <0x0A>
        self._replaced: list[tuple[str, str]] = []
        for part in parts(decoder, "decoders"):
            kind, pattern = part.text("type"), part.get("pattern")
            if kind == "ByteLevel":
                self._letters = {letter: byte for byte, letter in enumerate(byte_letters())}
            elif kind == "ByteFallback":
                self._has_bytes = True
            elif kind == "Metaspace":
                self._replaced.append((part.get("replacement") or _BLANK, " "))
            elif kind == "Replace" and isinstance(pattern, dict) and pattern.get("String"):
                self._replaced.append((part.child("pattern").text("String"), part.text("content")))

    def of(self, token: str) -> bytes:
        """Bytes of a token of the vocabulary, which is not one of those added to it."""
        if self._has_bytes and (byte := _BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        if self._letters and all(letter in self._letters for letter in token):
            return bytes(self._letters[letter] for letter in token)
        for old, new in self._replaced:
            token = token.replace(old, new)
        return token.encode("utf-8", "replace")
