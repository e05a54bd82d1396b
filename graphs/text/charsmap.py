"""SentencePiece's table of characters, checked: a bad one ends the process in the library.

The table is in base64: the size of a trie in bytes, the trie, and replacements that each end with a
zero byte. The trie is a double array of 32-bit units, all numbers with their lowest byte first:

    bit 31      the unit is the value of a leaf: where in the replacements its own begins
    bits 10-30  the unit's children lie at its place ^ offset ^ character
    bit 9       the offset counts 256 times as much
    bit 8       a leaf lies at its place ^ offset
    bits 0-7    the character that leads here

Source: darts-clone, include/darts.h @ 0.32; sentencepiece, src/normalizer.cc @ 0.2.
"""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt

_UNIT_BYTES = 4
_CHARACTERS = 256


def longest_replacement(charsmap: object) -> int:
    """Bytes of the longest replacement in a table.

    Args:
        charsmap: the table, in base64.

    Raises:
        ValueError: it is damaged; looking something up in it could fail.
    """
    if not isinstance(charsmap, str):
        raise ValueError(f"expected base64, found {type(charsmap).__name__}")  # noqa: TRY004
    content = base64.b64decode(charsmap, validate=True)
    size = int.from_bytes(content[:_UNIT_BYTES], "little")
    units = content[_UNIT_BYTES : _UNIT_BYTES + size]
    replacements = content[_UNIT_BYTES + size :]
    if len(units) != size or not size or size % (_UNIT_BYTES * _CHARACTERS):
        raise ValueError(f"expected a trie of {size} bytes, found {len(units)}")
    replacements.decode("utf-8")
    _check_trie(np.frombuffer(units, "<u4").astype(np.int64), np.frombuffer(replacements, np.uint8))
    return max(map(len, replacements.split(b"\0")))


def _check_trie(units: npt.NDArray[np.int64], replacements: npt.NDArray[np.uint8]) -> None:
    """Refuse units that lead out of the trie, and values that lead out of the replacements."""
    is_value = units >> 31 == 1
    places = np.flatnonzero(~is_value)
    nodes = units[places]
    children = places ^ (nodes >> 10 << (nodes >> 6 & 8))
    if (children | (_CHARACTERS - 1)).max(initial=0) >= len(units):
        raise ValueError("the trie leads out of itself")
    if not is_value[children[nodes >> 8 & 1 == 1]].all():
        raise ValueError("the trie has leaves without a value")
    values = units[is_value] & 0x7FFFFFFF
    if is_value[0] or values.max(initial=-1) >= len(replacements):
        raise ValueError("the trie leads out of the replacements")
    if (replacements[values] >> 6 == 2).any():
        raise ValueError("the trie leads into the middle of characters")
