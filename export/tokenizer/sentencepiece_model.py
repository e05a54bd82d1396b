"""tokenizer.model, SentencePiece's vocabulary file, for the tokenizers library.

Only what MiniCPM3 and its like have: byte-pair pieces with bytes for unknown characters, and text
that is not normalised but for its blanks, which become U+2581.

The file is a protocol buffer: fields of (number << 3 | kind), then a number (kind 0), 8 bytes (1),
a length and as many bytes (2), or 4 bytes (5).

Source: sentencepiece, src/sentencepiece_model.proto @ 0.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from shoal.graphs.errors import CheckpointError
from shoal.graphs.input_files import read_bytes
from shoal.graphs.text.tokenizer_file import LONGEST_TOKENIZER_FILE

SENTENCEPIECE_FILE = "tokenizer.model"

BLANK = "\u2581"
_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6


@dataclass(frozen=True, kw_only=True)
class Piece:
    """An entry of the vocabulary."""

    text: str
    score: float  # of two possible merges the one with the higher score comes first
    kind: int


def read_sentencepiece(
    path: Path, added: Mapping[int, AddedToken], config: Mapping[str, Any]
) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Args:
        path: tokenizer.model.
        added: tokens that tokenizer_config.json names, by id; some are no pieces.
        config: content of tokenizer_config.json. Its ``legacy`` says whether a blank is put before
            every stretch of text (unless false) or only before the first.

    Raises:
        CheckpointError: the file is damaged, or of a kind that is not supported.
    """
    pieces, has_prefix = _read(path)
    tokenizer = Tokenizer(_bpe(pieces))
    if config.get("legacy", True):
        prefix = [normalizers.Prepend(BLANK)] if has_prefix else []
        tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", BLANK)])
    else:
        scheme = "first" if has_prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokens = {
        id_: AddedToken(piece.text, special=piece.kind == _CONTROL, normalized=False)
        for id_, piece in enumerate(pieces)
        if piece.kind in (_CONTROL, _USER_DEFINED)
    }
    tokens |= added
    tokenizer.add_tokens([tokens[id_] for id_ in sorted(tokens)])
    begin = _begin(pieces, config)
    if begin is not None:
        id_ = tokenizer.token_to_id(begin)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, id_)]
        )
    return tokenizer


def _bpe(pieces: list[Piece]) -> models.BPE:
    """Two neighbours merge when they are a piece together, those of the best score first."""
    vocabulary = {piece.text: id_ for id_, piece in enumerate(pieces)}
    mergeable = {
        piece.text: piece.score for piece in pieces if piece.kind in (_NORMAL, _USER_DEFINED)
    }
    merges = [
        (text[:place], text[place:])
        for text in sorted(mergeable, key=lambda text: (-mergeable[text], vocabulary[text]))
        for place in range(1, len(text))
        if text[:place] in mergeable and text[place:] in mergeable
    ]
    unknown = next(piece.text for piece in pieces if piece.kind == _UNKNOWN)
    return models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)


def _begin(pieces: list[Piece], config: Mapping[str, Any]) -> str | None:
    """The token that begins a text; tokenizers of this kind have one unless they deny it."""
    if config.get("add_bos_token", True) is not True:
        return None
    named = config.get("bos_token", "<s>")
    text = named.get("content") if isinstance(named, dict) else named
    return text if any(piece.text == text for piece in pieces) else None


def _read(path: Path) -> tuple[list[Piece], bool]:
    """The pieces, and whether a blank is put before a text."""
    try:
        model = _Message(read_bytes(path, LONGEST_TOKENIZER_FILE))
        pieces = [_piece(entry) for entry in model.all(1)]
        trainer, normalizer = _Message(model.one(2, b"")), _Message(model.one(3, b""))
        unsupported = _unsupported(pieces, trainer, normalizer)
        has_prefix = bool(normalizer.one(3, 1))
    except (OSError, ValueError, struct.error, IndexError) as error:
        raise CheckpointError(
            f"{path}: expected a SentencePiece model, found: {error}; download it again"
        ) from error
    texts = {piece.text for piece in pieces}
    if len(texts) != len(pieces) or all(piece.kind != _UNKNOWN for piece in pieces):
        raise CheckpointError(
            f"{path}: expected distinct pieces, one of them for the unknown; download it again"
        )
    if unsupported:
        raise CheckpointError(
            f"{path}: a SentencePiece model with {', '.join(unsupported)} cannot be converted; put "
            "a tokenizer.json beside it (AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW))"
        )
    return pieces, has_prefix


def _unsupported(pieces: list[Piece], trainer: _Message, normalizer: _Message) -> list[str]:
    """What a tokenizer made from these would get wrong."""
    kinds = {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE}
    own = "".join(piece.text for piece in pieces if piece.kind == _USER_DEFINED)
    claims = {
        "another model than BPE": trainer.one(3, 1) != _BPE,
        "pieces without bytes for unknown characters": (
            sum(piece.kind == _BYTE for piece in pieces) != 256
        ),
        "rules to normalise text": bool(normalizer.one(2, b"")),
        "blanks that are removed": bool(normalizer.one(4, 1)),
        "blanks after words": bool(trainer.one(24, 0)),
        "blanks in tokens of the user": " " in own or BLANK in own,
        "unused pieces": any(piece.kind not in kinds for piece in pieces),
    }
    return [claim for claim, is_so in claims.items() if is_so]


def _piece(entry: _Message) -> Piece:
    (score,) = struct.unpack("<f", entry.one(2, bytes(4)))
    return Piece(text=entry.one(1, b"").decode("utf-8"), score=score, kind=entry.one(3, _NORMAL))


class _Message:
    """The fields of a protocol buffer message; raises ValueError where it is none."""

    def __init__(self, data: bytes) -> None:
        self._fields: dict[int, list[Any]] = {}
        for number, value in _fields(data):
            self._fields.setdefault(number, []).append(value)

    def all(self, number: int) -> list[_Message]:
        """Every message in a field."""
        values = self._fields.get(number, [])
        if not all(isinstance(value, bytes) for value in values):
            raise ValueError(f"field {number} is no message")
        return [_Message(value) for value in values]

    def one(self, number: int, default: Any) -> Any:
        """The last value of a field, of the type of ``default``."""
        value = self._fields.get(number, [default])[-1]
        if type(value) is not type(default):
            raise ValueError(f"field {number} is {type(value).__name__}")
        return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value: int | bytes
            value, place = _varint(data, place)
        elif kind in (1, 2, 5):
            size, place = _varint(data, place) if kind == 2 else (8 if kind == 1 else 4, place)
            value, place = data[place : place + size], place + size
            if place > len(data):
                raise ValueError("the file ends within a field")
        else:
            raise ValueError(f"a field of kind {kind}")
        yield key >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and the place after it."""
    value = shift = 0
    while data[place] & 0x80:
        value |= (data[place] & 0x7F) << shift
        shift, place = shift + 7, place + 1
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    return value | data[place] << shift, place + 1
