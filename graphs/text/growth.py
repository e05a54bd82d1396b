"""How much longer the parts of a tokenizer.json may make a text, and whether they may shorten it.

Growth is bounded for the worst text, by what a part writes for the shortest thing it can match.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shoal.graphs.text.charsmap import longest_replacement
from shoal.graphs.text.fields import FieldError, Fields

Part = Fields
"""A normalizer, pre-tokenizer, decoder or post-processor of a tokenizer.json."""

_NFC, _NFKC = 3, 11  # bytes that a byte may become, by Unicode's FAQ on normalization
_COMPOSED = 8  # bytes that may become one: letters of mathematics with two accents, and to spare


_MOST_PARTS = 256  # the longest sequences that are published have ten
_MOST_STRIPPED = 16  # characters at an end; the library fails on shorter tokens
_ENDLESS = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Change:
    """What may become of a text's bytes."""

    growth: int = 1  # bytes that a byte may become
    shrinking: float = 1  # bytes that may become one; infinite where text may be lost


_NO_CHANGE = Change()
_LOSS = Change(shrinking=math.inf)


def normalizer_change(normalizer: Part | None) -> Change:
    """What a normalizer may do to a text.

    Raises:
        FieldError: it is none that is known, or its fields are wrong.
    """
    return _in_turn(normalizer, "normalizers", _NORMALIZERS)


def pre_tokenizer_change(pre_tokenizer: Part | None) -> Change:
    """What a pre-tokenizer may do to a text; see ``normalizer_change``."""
    return _in_turn(pre_tokenizer, "pretokenizers", _PRE_TOKENIZERS)


def decoder_growth(decoder: Part | None) -> int:
    """Bytes that a byte of a token may become; see ``normalizer_change``."""
    return _in_turn(decoder, "decoders", _DECODERS).growth


def parts(part: Part | None, inner: str) -> Iterator[Part]:
    """The parts of a sequence in a sequence, or a part itself.

    Args:
        part: the sequence or part.
        inner: field of a sequence that holds its parts.

    Raises:
        FieldError: a sequence is none.
    """
    if part is None:
        return
    if part.text("type") != "Sequence":
        yield part
        return
    for each in part.children(inner):
        yield from parts(each, inner)


def _in_turn(
    part: Part | None, inner: str, known: dict[str, Change | Callable[[Part], Change]]
) -> Change:
    growth, shrinking = 1, 1.0
    for number, each in enumerate(parts(part, inner)):
        kind = each.text("type")
        if number == _MOST_PARTS:
            raise each.error("type", f"at most {_MOST_PARTS} parts", kind)
        if kind not in known:
            raise each.error("type", f"one of {', '.join(known)}", kind)
        found = known[kind]
        change = found if isinstance(found, Change) else found(each)
        growth = min(growth * change.growth, _ENDLESS)
        shrinking *= change.shrinking
    return Change(growth=growth, shrinking=shrinking)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))  # JSON can spell half a character


def _replace(part: Part) -> Change:
    content = _size(part.text("content"))
    pattern = part.child("pattern")
    if pattern.get("String") is None:
        pattern.text("Regex")  # may match everything, or nothing at either end of each character
        return Change(growth=1 + 2 * content, shrinking=math.inf)
    size = _size(pattern.text("String"))
    if not size:
        raise pattern.error("String", "a text that is not empty", "")
    growth = max(1, math.ceil(content / size))
    return Change(growth=growth, shrinking=max(1, size / content) if content else math.inf)


def _prepend(part: Part) -> Change:
    text = part.text("prepend")
    if not text:
        raise part.error("prepend", "a text that is not empty", text)
    return Change(growth=1 + _size(text))


def _precompiled(part: Part) -> Change:
    try:
        growth = longest_replacement(part.get("precompiled_charsmap"))
    except ValueError as error:
        raise FieldError(f"{part.place}: precompiled_charsmap: {error}") from error
    return Change(growth=max(1, growth), shrinking=math.inf)


def _strip(part: Part) -> Change:
    for key in ("start", "stop"):
        if part.integer(key) > _MOST_STRIPPED:
            raise part.error(key, f"at most {_MOST_STRIPPED}", part.get(key))
    return _NO_CHANGE


def _metaspace(part: Part) -> Change:
    size = _size(part.text("replacement"))
    return Change(growth=2 * max(1, size))


def _byte_level(part: Part) -> Change:
    return Change(growth=2 if part.get("add_prefix_space") is False else 4)


def _split(part: Part) -> Change:
    return _LOSS if part.get("behavior") == "Removed" else _NO_CHANGE


def _fixed_length(part: Part) -> Change:
    part.integer("length", 1)
    return _NO_CHANGE


_NORMALIZERS: dict[str, Any] = {
    "BertNormalizer": Change(growth=2 * _NFC, shrinking=math.inf),
    "ByteLevel": Change(growth=2),
    "Lowercase": Change(growth=2, shrinking=_COMPOSED),
    "NFC": Change(growth=_NFC, shrinking=_COMPOSED),
    "NFD": Change(growth=_NFC, shrinking=_COMPOSED),
    "NFKC": Change(growth=_NFKC, shrinking=_COMPOSED),
    "NFKD": Change(growth=_NFKC, shrinking=_COMPOSED),
    "Nmt": _LOSS,
    "Precompiled": _precompiled,
    "Prepend": _prepend,
    "Replace": _replace,
    "Strip": _LOSS,
    "StripAccents": _LOSS,
}
_PRE_TOKENIZERS: dict[str, Any] = {
    "BertPreTokenizer": _LOSS,
    "ByteLevel": _byte_level,
    "CharDelimiterSplit": _LOSS,
    "Digits": _NO_CHANGE,
    "FixedLength": _fixed_length,
    "Metaspace": _metaspace,
    "Punctuation": _split,
    "Split": _split,
    "UnicodeScripts": _NO_CHANGE,
    "Whitespace": _LOSS,
    "WhitespaceSplit": _LOSS,
}
_DECODERS: dict[str, Any] = {
    "BPEDecoder": Change(growth=2),
    "ByteFallback": Change(growth=3),  # a byte that is no text becomes U+FFFD
    "ByteLevel": Change(growth=3),
    "CTC": Change(growth=2),
    "Fuse": _NO_CHANGE,
    "Metaspace": _NO_CHANGE,
    "Replace": _replace,
    "Strip": _strip,
    "WordPiece": Change(growth=2),
}
