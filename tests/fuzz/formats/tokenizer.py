"""Tokenizers: tokenizer.json and tokenizer_config.json changed, then loaded and used on texts."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.fuzz_format import Samples, Use
from tests.fuzz.json_mutations import change_json, change_json_text, json_bytes

from shoal.runtime.text.tokenizer import find_template, load_tokenizer, read_json_object

_TEXTS = ("", "Hello, world 123!", "  two  spaces\n\n", "naïve 漢字 🙂", "<|user|> a\0b", "é" * 500)
_MOST_IDS = 40

_PATTERNS = ("", "a", r"\s+", "(a*)*b", r"(?=x)", "(" * 60 + "a" + ")" * 60, "[", r"\p{L}+", "^")
_NORMALIZERS: tuple[dict[str, Any], ...] = (
    *({"type": kind} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")),
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Prepend", "prepend": ""},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Replace", "pattern": {"String": ""}, "content": "ab"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "ByteLevel"},
)
_PRE_TOKENIZERS: tuple[dict[str, Any], ...] = (
    *({"type": kind} for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")),
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "CharDelimiterSplit", "delimiter": " "},
    {"type": "FixedLength", "length": 0},
    {"type": "UnicodeScripts"},
    *(
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
        for pattern in _PATTERNS
        for behavior in ("Isolated", "Removed", "MergedWithNext")
        for invert in (False, True)
    ),
)
_DECODERS: tuple[dict[str, Any], ...] = (
    *({"type": kind} for kind in ("ByteLevel", "Fuse", "ByteFallback")),
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "BPEDecoder", "suffix": ""},
    {"type": "Strip", "content": " ", "start": 5, "stop": 1 << 40},
    {"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Replace", "pattern": {"String": ""}, "content": "ab" * 50},
)
_PARTS = {
    "normalizer": (_NORMALIZERS, "normalizers"),
    "pre_tokenizer": (_PRE_TOKENIZERS, "pretokenizers"),
    "decoder": (_DECODERS, "decoders"),
}
_ADDED = ("begin_of_sentence", "end_of_sentence", "pad", "user", "assistant")
_LETTERS = [
    *(f"<|{name}|>" for name in _ADDED),
    "[UNK]",
    *map(chr, range(33, 127)),
    "##a",
    "Ġ",
    "he",
    "ll",
]
_VOCAB = {letter: number for number, letter in enumerate(_LETTERS)}
_MODELS: tuple[dict[str, Any], ...] = (
    {"type": "WordLevel", "vocab": _VOCAB, "unk_token": "[UNK]"},
    {"type": "WordPiece", "vocab": _VOCAB, "unk_token": "[UNK]"}
    | {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    {"type": "Unigram", "unk_id": 0, "vocab": [[letter, -1.5] for letter in _LETTERS]},
    {"type": "BPE", "vocab": _VOCAB, "merges": [["h", "e"], ["l", "l"]], "unk_token": "[UNK]"},
    {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"},
    {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    | {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]},
    {"type": "Unigram", "unk_id": None, "vocab": [["", 0.0], ["", -1e308]], "byte_fallback": True},
)
_BPE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "dropout": (0.0, 0.5, 1.0, 2.0, -1.0),
    "unk_token": ("?", "", "a"),
    "continuing_subword_prefix": ("##", "é", "x" * 200),
    "end_of_word_suffix": ("</w>", "é", ""),
    "fuse_unk": (True,),
    "byte_fallback": (True,),
    "ignore_merges": (True,),
}
_POST_PROCESSORS: tuple[dict[str, Any], ...] = (
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "BertProcessing", "sep": ["s", 99999], "cls": ["c", 1 << 31]},
    {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 3}
    | {"pair": [], "special_tokens": {}},
    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}]}
    | {"pair": [], "special_tokens": {}},
    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 999}
    | {"pair": [], "special_tokens": {"x": {"id": "x", "ids": [7] * 999, "tokens": ["x"] * 999}}},
)


class TokenizerFormat:
    """Small tokenizers."""

    def __init__(self, samples: Samples) -> None:
        self._tokenizer = json.loads((samples.checkpoint / "tokenizer.json").read_bytes())
        self._config = json.loads((samples.checkpoint / "tokenizer_config.json").read_bytes())

    def prepare(self, rng: Random, folder: Path) -> Use:
        """See ``FuzzFormat``."""
        tokenizer, config = self._tokenizer, self._config
        if rng.random() < 0.5:
            tokenizer = self._with_other_parts(rng)
        if rng.random() < 0.1:
            config = change_json(rng, config)
        elif rng.random() < 0.7:
            key = rng.choice((*tokenizer, "model", "model", "added_tokens"))
            tokenizer = tokenizer | {key: change_json(rng, tokenizer[key])}
        text = change_json_text(rng, json_bytes(tokenizer))
        (folder / "tokenizer.json").write_bytes(text)
        config_text = change_json_text(rng, json_bytes(config))
        (folder / "tokenizer_config.json").write_bytes(config_text)
        return lambda: _use(folder)

    def _with_other_parts(self, rng: Random) -> dict[str, Any]:
        """Parts that the library knows and the families do not use."""
        found = dict(self._tokenizer)
        for _ in range(rng.randint(1, 2)):
            part = rng.choice((*_PARTS, "model", "options", "post_processor"))
            if part in _PARTS:
                choices, key = _PARTS[part]
                several = [rng.choice(choices) for _ in range(rng.randint(1, 3))]
                found[part] = rng.choice((several[0], {"type": "Sequence", key: several}))
            elif part == "model":
                found["model"] = rng.choice(_MODELS)
            elif part == "options":
                option = rng.choice(list(_BPE_OPTIONS))
                found["model"] = found["model"] | {option: rng.choice(_BPE_OPTIONS[option])}
            else:
                found["post_processor"] = rng.choice(_POST_PROCESSORS)
        return found


def _use(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for text in _TEXTS:
        ids = tokenizer.encode(text)
        tokenizer.decode(ids)
        tokenizer.encode_with_ends(text)
    for token in range(_MOST_IDS):
        tokenizer.decode([token], skip_special_tokens=False)
    tokenizer.decode([*range(_MOST_IDS), 1 << 20])
    tokenizer.special_token_id("<|user|>")
    _ = tokenizer.begin_ids
    find_template(None, read_json_object(folder / "tokenizer_config.json"))


def make(samples: Samples) -> TokenizerFormat:
    """The format, from its samples."""
    return TokenizerFormat(samples)
