"""Vocabularies of SentencePiece and tiktoken: changed by entries and as bytes, then converted."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from random import Random

from tests.fuzz.fuzz_format import Samples, Use
from tests.fuzz.json_mutations import change_json, json_bytes
from tests.fuzz.mutations import INTEGERS, change_bytes, number_of_changes
from tests.fuzz.wire_mutations import (
    BYTES,
    FIXED32,
    VARINT,
    Donors,
    Field,
    change_message,
    gather_donors,
    read_fields,
    write_fields,
)

from shoal.export.config.model_config import ModelConfig
from shoal.export.tokenizer.files import check_tokenizer, tokenizer_files
from shoal.runtime.text.tokenizer import tokenizer_of

_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_BPE, _NORMAL, _UNKNOWN, _CONTROL, _BYTE = 2, 1, 2, 3, 6
_TEXTS = ("", "Hello, world 123!", "  two  spaces\n\n", "naïve 漢字 🙂")
_RESERVED = 4


class VocabularyFormat:
    """Small vocabularies in the two forms."""

    def __init__(self, samples: Samples) -> None:
        config = json.loads((samples.checkpoint / "config.json").read_bytes())
        tokenizer = json.loads((samples.checkpoint / "tokenizer.json").read_bytes())
        merged = ["".join(merge) for merge in tokenizer["model"]["merges"]]
        self._pieces = _sentencepiece(merged)
        self._ranks = [bytes([n]) for n in range(256)]
        self._ranks += [token.encode() for token in dict.fromkeys(merged) if token.isascii()]
        size = max(len(self._ranks), len(read_fields(self._pieces))) + _RESERVED
        self._vocab_size = ModelConfig.from_hf(config | {"vocab_size": size}).vocab_size
        added = {str(len(self._ranks)): {"content": "<|end|>", "special": True}}
        self._config = {"bos_token": "<s>", "add_bos_token": True}
        self._tiktoken_config = {"bos_token": None, "added_tokens_decoder": added}
        self._donors: Donors = {}
        gather_donors(self._pieces, self._donors)

    def prepare(self, rng: Random, folder: Path) -> Use:
        """See ``FuzzFormat``."""
        config = rng.choice((self._config, self._tiktoken_config))
        if config is self._config:
            content = self._pieces
            for _ in range(number_of_changes(rng)):
                content = change_message(rng, content, self._donors)
            (folder / "tokenizer.model").write_bytes(content)
        else:
            (folder / "tiktoken.model").write_bytes(_changed_lines(rng, _lines(self._ranks)))
        if rng.random() < 0.2:
            config = change_json(rng, config)
        (folder / "tokenizer_config.json").write_bytes(json_bytes(config))
        return lambda: self._use(folder)

    def _use(self, folder: Path) -> None:
        files = tokenizer_files(folder, self._vocab_size)
        check_tokenizer(files, folder)
        tokenizer = tokenizer_of(files, folder)
        for text in _TEXTS:
            tokenizer.decode(tokenizer.encode(text))


def _sentencepiece(merged: list[str]) -> bytes:
    pieces = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
    pieces += [(f"<0x{n:02X}>", _BYTE) for n in range(256)]
    letters = dict.fromkeys("".join(merged))
    pieces += [(text, _NORMAL) for text in dict.fromkeys([*letters, *merged])]
    fields = []
    for number, (text, kind) in enumerate(pieces):
        parts = [Field(1, BYTES, text.encode()), Field(2, FIXED32, struct.pack("<f", -number))]
        piece = write_fields([*parts, Field(3, VARINT, kind)])
        fields.append(Field(_PIECE, BYTES, piece))
    trainer = write_fields([Field(3, VARINT, _BPE)])
    normalizer = write_fields([Field(3, VARINT, 1), Field(4, VARINT, 0)])
    return write_fields(
        [*fields, Field(_TRAINER, BYTES, trainer), Field(_NORMALIZER, BYTES, normalizer)]
    )


def _lines(ranks: list[bytes]) -> list[bytes]:
    return [b"%s %d" % (base64.b64encode(token), rank) for rank, token in enumerate(ranks)]


def _changed_lines(rng: Random, lines: list[bytes]) -> bytes:
    for _ in range(number_of_changes(rng)):
        place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                del lines[place]
            case 1:
                lines.insert(other, lines[place])
            case 2:
                lines[place] = change_bytes(rng, lines[place])
            case 3:
                token = base64.b64encode(rng.choice((b"", b"a" * 5000, b"\xff" * 9, b"the", b"ab")))
                lines[place] = token + b" " + lines[place].partition(b" ")[2]
            case 4:
                rank = str(rng.choice((*INTEGERS, "1" * 5000, "1_0", "+1", "٣", ""))).encode()
                lines[place] = lines[place].partition(b" ")[0] + b" " + rank
            case _:
                lines.append(b"%s %d" % (base64.b64encode(b"ab" * rng.randint(1, 9)), len(lines)))
    return rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\n\n")).join(lines) + b"\n"


def make(samples: Samples) -> VocabularyFormat:
    """The format, from its samples."""
    return VocabularyFormat(samples)
