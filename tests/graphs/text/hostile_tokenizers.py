"""tokenizer.json files of strangers: good ones of every kind, and what can be wrong with them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from shoal.graphs.text.byte_letters import byte_letters

Json = dict[str, Any]

TEXTS = ["", "hello world", "  The 3 naïve\n\nﬁsh 深い海🐟 <s>hello</s> É ", "x" * 3000]
VOCAB = {letter: id_ for id_, letter in enumerate(byte_letters())} | {"he": 256, "ll": 257}
BEGIN = {"id": 258, "content": "<s>", "special": True}
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
BPE: Json = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
    "vocab": VOCAB,
    "merges": [["h", "e"], ["l", "l"]],
}
BYTE_LEVEL: Json = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
TEMPLATE: Json = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [258], "tokens": ["<s>"]}},
}


def charsmap(trie: list[int] | None = None, replacements: bytes = b"A\0", size: int = -1) -> str:
    """A table of characters; without a trie one that knows no character."""
    units = np.array([0] * 256 if trie is None else trie, "<u4").tobytes()
    header = (len(units) if size < 0 else size).to_bytes(4, "little")
    return base64.b64encode(header + units + replacements).decode()


def precompiled(table: object) -> Json:
    return {"type": "Precompiled", "precompiled_charsmap": table}


def replace(pattern: str, content: str, kind: str = "String") -> Json:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def in_turn(inner: str, parts: list[Json]) -> Json:
    return {"type": "Sequence", inner: parts}


def nested(inner: str, depth: int) -> Json:
    part: Json = {"type": "Lowercase"}
    for _ in range(depth):
        part = in_turn(inner, [part])
    return part


NORMALIZERS: dict[str, Json] = {
    "Bert": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": True,
        "lowercase": True,
    },
    "Strip": {"type": "Strip", "strip_left": True, "strip_right": True},
    "Prepend": {"type": "Prepend", "prepend": "x"},
    "Replace": replace(" ", "_"),
    "ReplaceRegex": replace(" {2,}", "_", "Regex"),
    "Precompiled": precompiled(charsmap()),
    "Sequence": in_turn("normalizers", [{"type": "NFC"}, replace("a", "b")]),
    **{
        kind: {"type": kind}
        for kind in ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "ByteLevel")
    },
}
PRE_TOKENIZERS: dict[str, Json] = {
    "ByteLevel": BYTE_LEVEL,
    "Metaspace": {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "always",
        "split": True,
    },
    "Delimiter": {"type": "CharDelimiterSplit", "delimiter": "-"},
    "Split": {
        "type": "Split",
        "pattern": {"Regex": "\\d+"},
        "behavior": "Isolated",
        "invert": False,
    },
    "Punctuation": {"type": "Punctuation", "behavior": "Isolated"},
    "Digits": {"type": "Digits", "individual_digits": True},
    "FixedLength": {"type": "FixedLength", "length": 5},
    "Sequence": in_turn("pretokenizers", [{"type": "Whitespace"}, BYTE_LEVEL]),
    **{
        kind: {"type": kind}
        for kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "UnicodeScripts")
    },
}
DECODERS: dict[str, Json] = {
    "ByteLevel": BYTE_LEVEL,
    "Metaspace": PRE_TOKENIZERS["Metaspace"],
    "WordPiece": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "BPEDecoder": {"type": "BPEDecoder", "suffix": "</w>"},
    "CTC": {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    "Replace": replace("\u2581", " "),
    "Strip": {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    "Sequence": in_turn("decoders", [replace("\u2581", " "), {"type": "Fuse"}]),
    "ByteFallback": {"type": "ByteFallback"},
    "Fuse": {"type": "Fuse"},
}
PROCESSORS: dict[str, Json] = {
    "Template": TEMPLATE,
    "Bert": {"type": "BertProcessing", "sep": ["<s>", 258], "cls": ["<s>", 258]},
    "Roberta": {
        "type": "RobertaProcessing",
        "sep": ["<s>", 258],
        "cls": ["<s>", 258],
        "trim_offsets": True,
        "add_prefix_space": True,
    },
    "ByteLevel": BYTE_LEVEL,
    "Sequence": in_turn("processors", [BYTE_LEVEL, TEMPLATE]),
}
MODELS: dict[str, Json] = {
    "BPE": BPE,
    "WordPiece": {
        "type": "WordPiece",
        "unk_token": "h",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": VOCAB,
    },
    "WordLevel": {"type": "WordLevel", "unk_token": "h", "vocab": VOCAB},
    "Unigram": {
        "type": "Unigram",
        "unk_id": 0,
        "byte_fallback": False,
        "vocab": [[letter, -2.5] for letter in VOCAB],
    },
}
PARTS: dict[str, dict[str, Json]] = {
    "normalizer": NORMALIZERS,
    "pre_tokenizer": PRE_TOKENIZERS,
    "decoder": DECODERS,
    "post_processor": PROCESSORS,
    "model": MODELS,
}
WRONG: list[Any] = [None, True, -1, 0, 2**63, 10**400, 1.5, "", "\u00e9", "x" * 5000, "(", [[]], {}]
MISSING = object()


def tokenizer(**changes: Any) -> Json:
    """A good tokenizer.json but for changes."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [PLAIN | BEGIN],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": TEMPLATE,
        "decoder": BYTE_LEVEL,
        "model": BPE,
    } | changes


_CUT = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
ODD: dict[str, Json] = {
    "truncation with a long stride": tokenizer(truncation=_CUT),
    "a bound on padding": tokenizer(
        padding={
            "strategy": {"Fixed": 2**62},
            "direction": "Right",
            "pad_to_multiple_of": 0,
            "pad_id": 2**32 - 1,
            "pad_type_id": 0,
            "pad_token": "",
        }
    ),
    "few growing letters": tokenizer(normalizer=replace("l", "x" * 500)),
}
"""Files that look odd and work."""


def good() -> Iterator[tuple[str, Json]]:
    """A good file with each known part, and odd ones."""
    yield from ODD.items()
    for place, kinds in PARTS.items():
        for kind, part in kinds.items():
            yield f"{place}: {kind}", tokenizer(**{place: part})


def mutants() -> Iterator[tuple[str, Json]]:
    """Files in which a field of a part is wrong or missing; most are no good, not all."""
    for place, kinds in PARTS.items():
        for kind, part in kinds.items():
            for key in part:
                for value in (*WRONG, MISSING):
                    changed = {**part, key: value}
                    if value is MISSING:
                        del changed[key]
                    shown = "nothing" if value is MISSING else repr(value)[:20]
                    yield f"{place}: {kind}: {key}: {shown}", tokenizer(**{place: changed})
    for key in (*tokenizer(), "added_tokens"):
        for value in WRONG:
            yield f"{key}: {value!r:.20}", tokenizer(**{key: value})
    for key in PLAIN | BEGIN:
        for value in WRONG:
            token = PLAIN | BEGIN | {key: value}
            yield f"added token: {key}: {value!r:.20}", tokenizer(added_tokens=[token])


def bpe(**changes: Any) -> Json:
    return tokenizer(model=BPE | changes)


def unigram(**changes: Any) -> Json:
    return tokenizer(model=MODELS["Unigram"] | changes)


def template(**changes: Any) -> Json:
    return tokenizer(post_processor=TEMPLATE | changes)


def normalizer(part: Json) -> Json:
    return tokenizer(normalizer=part)


_TEXT = {"Sequence": {"id": "A", "type_id": 0}}
_LEAF = [1 << 8 | 1 << 10, *[1 << 31] * 255]  # a root whose leaf lies beside it

BAD: dict[str, Json | bytes] = {
    # what is no file of the kind
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "bytes": b"\xff\xfe\x00",
    "UTF-16": json.dumps(tokenizer()).encode("utf-16"),
    "half": json.dumps(tokenizer()).encode()[:2000],
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a key twice": json.dumps(tokenizer()).encode()[:-1] + b', "normalizer": {"type": "NFX"}}',
    "another version": tokenizer(version="2.0"),
    "deep sequences": normalizer(nested("normalizers", 100)),
    "deeper sequences": json.dumps(normalizer(nested("normalizers", 300))).encode(),
    "a wide sequence": normalizer(in_turn("normalizers", [{"type": "NFC"}] * 10_000)),
    # tables of characters
    "charsmap, empty": normalizer(precompiled("")),
    "charsmap, short": normalizer(precompiled("AAA=")),
    "charsmap, no base64": normalizer(precompiled("?" * 400)),
    "charsmap, no trie": normalizer(precompiled(charsmap([]))),
    "charsmap, a number": normalizer(precompiled(5)),
    "charsmap, truncated": normalizer(precompiled(charsmap()[:400])),
    "charsmap, large size": normalizer(precompiled(charsmap(size=2**32 - 4))),
    "charsmap, odd size": normalizer(precompiled(charsmap(size=1022))),
    "charsmap, a small trie": normalizer(precompiled(charsmap([0] * 8))),
    "charsmap, wild offsets": normalizer(precompiled(charsmap([2**31 - 1] * 256))),
    "charsmap, wild values": normalizer(precompiled(charsmap([*_LEAF[:1], *[2**32 - 1] * 255]))),
    "charsmap, no values": normalizer(precompiled(charsmap([256] * 256))),
    "charsmap, half characters": normalizer(precompiled(charsmap(_LEAF, b"\xa0\0"))),
    "charsmap, a value in a character": normalizer(
        precompiled(charsmap([_LEAF[0], *[1 << 31 | 1] * 255], "é\0".encode()))
    ),
    "charsmap, long replacement": normalizer(precompiled(charsmap(_LEAF, b"A" * 5000 + b"\0"))),
    "charsmap in a sequence": normalizer(in_turn("normalizers", [precompiled("AAAA")])),
    # growth
    "grows by nothing": normalizer(replace("", "ab")),
    "grows by a regex": normalizer(replace("", "x" * 5000, "Regex")),
    "grows by a star": normalizer(replace("z*", "x" * 5000, "Regex")),
    "grows by groups": normalizer(replace("(.*)", "$1" * 5000, "Regex")),
    "grows by letters": normalizer(replace("l", "x" * 5000)),
    "grows by a start": normalizer({"type": "Prepend", "prepend": "x" * 5000}),
    "doubles": normalizer(in_turn("normalizers", [replace("l", "ll")] * 60)),
    "decomposes": normalizer(in_turn("normalizers", [{"type": "NFKD"}] * 60)),
    "doubles in sequences": normalizer(
        in_turn("normalizers", [in_turn("normalizers", [replace("l", "ll")] * 8)] * 8)
    ),
    "doubles an added token": tokenizer(
        normalizer=in_turn("normalizers", [replace("s", "ss")] * 60),
        added_tokens=[PLAIN | BEGIN | {"normalized": True}],
    ),
    "grows many added tokens": tokenizer(
        normalizer=replace("l", "x" * 250),
        added_tokens=[
            PLAIN | BEGIN | {"id": 258 + n, "content": f"<{n}>llllllll", "normalized": True}
            for n in range(5000)
        ],
    ),
    "doubles when cut": tokenizer(pre_tokenizer=in_turn("pretokenizers", [BYTE_LEVEL] * 40)),
    "wide blanks": tokenizer(
        pre_tokenizer=in_turn("pretokenizers", [PRE_TOKENIZERS["Metaspace"]] * 40)
    ),
    "decoder grows by nothing": tokenizer(decoder=replace("", "ab")),
    "decoder grows by a regex": tokenizer(decoder=replace("z*", "x" * 5000, "Regex")),
    "decoder strips much": tokenizer(decoder=DECODERS["Strip"] | {"stop": 2**40}),
    "decoder doubles": tokenizer(decoder=in_turn("decoders", [replace("h", "hh")] * 60)),
    "decoder of suffixes doubles": tokenizer(
        decoder=in_turn("decoders", [{"type": "BPEDecoder", "suffix": ""}] * 60)
    ),
    "the text often": template(single=[_TEXT] * 5000),
    "the text twice, often": tokenizer(
        post_processor=in_turn("processors", [TEMPLATE | {"single": [_TEXT] * 2}] * 60)
    ),
    "no text": template(single=[]),
    "another text": template(single=[{"Sequence": {"id": "B", "type_id": 0}}]),
    "many tokens around the text": template(
        single=[*TEMPLATE["single"][:1] * 5000, _TEXT],
    ),
    "many ids of a token": template(
        special_tokens={"<s>": {"id": "<s>", "ids": [258] * 5000, "tokens": ["<s>"] * 5000}}
    ),
    "long tokens": bpe(vocab=VOCAB | {"x" * 1_000_000: 300}),
    "a long added token": tokenizer(added_tokens=[PLAIN | BEGIN | {"content": "x" * 1_000_000}]),
    "many added tokens": tokenizer(
        added_tokens=[PLAIN | BEGIN | {"id": 258 + n, "content": f"<{n}>"} for n in range(20_000)]
    ),
    # ids and tokens
    "ids below zero": bpe(vocab=VOCAB | {"he": -1}),
    "ids of 63 bits": bpe(vocab=VOCAB | {"he": 2**63}),
    "ids of 32 bits": bpe(vocab=VOCAB | {"he": 2**32 - 1}),
    "ids that are texts": bpe(vocab=VOCAB | {"he": "256"}),
    "ids that are fractions": bpe(vocab=VOCAB | {"he": 256.5}),
    "added ids that are taken": tokenizer(added_tokens=[PLAIN | BEGIN | {"id": 5}]),
    "added ids of 63 bits": tokenizer(added_tokens=[PLAIN | BEGIN | {"id": 2**63}]),
    "added ids below zero": tokenizer(added_tokens=[PLAIN | BEGIN | {"id": -1}]),
    "added tokens twice": tokenizer(added_tokens=[PLAIN | BEGIN, PLAIN | BEGIN | {"id": 259}]),
    "added tokens of nothing": tokenizer(added_tokens=[PLAIN | BEGIN | {"content": ""}]),
    "added tokens without flags": tokenizer(added_tokens=[BEGIN]),
    "added tokens in an object": tokenizer(added_tokens={"<s>": 258}),
    "merges of what is no token": bpe(merges=[["h", "i"]]),
    "merges of three": bpe(merges=["h e l"]),
    "merges of numbers": bpe(merges=[[1, 2]]),
    "merges into what is no token": bpe(merges=[["h", "h"]]),
    "merges after a long prefix": bpe(continuing_subword_prefix="深" * 9),
    "merges after a prefix they lack": bpe(continuing_subword_prefix="é", merges=["h e"]),
    "dropout": bpe(dropout=5.0),
    "unknown token that is none": unigram(unk_id=5000),
    "scores that are none": json.dumps(unigram(vocab=[["h", float("nan")]])).encode(),
    "scores without end": json.dumps(unigram()).replace("-2.5", "-1e999").encode(),
    "pieces of nothing": unigram(vocab=[["", 0.0], ["h", -1.0]]),
    "pieces of three": unigram(vocab=[["h", 0.0, 1]]),
    "no pieces": unigram(vocab=[]),
    "words without end": tokenizer(model=MODELS["WordPiece"] | {"max_input_chars_per_word": 2**60}),
    "no token for unknown words": tokenizer(model=MODELS["WordPiece"] | {"unk_token": "none"}),
    "no token for unknown levels": tokenizer(model=MODELS["WordLevel"] | {"unk_token": "none"}),
    # others
    "cut at no length": tokenizer(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "cut by no regex": tokenizer(
        pre_tokenizer=PRE_TOKENIZERS["Split"] | {"pattern": {"Regex": "("}}
    ),
    "cut at two characters": tokenizer(
        pre_tokenizer={"type": "CharDelimiterSplit", "delimiter": "--"}
    ),
    "blanks of two characters": tokenizer(
        pre_tokenizer=PRE_TOKENIZERS["Metaspace"] | {"replacement": "__"}
    ),
    "a token the template has not": template(special_tokens={}),
    "fewer ids than tokens": template(
        special_tokens={"<s>": {"id": "<s>", "ids": [], "tokens": ["<s>"]}}
    ),
    "ids around a text of 33 bits": template(
        special_tokens={"<s>": {"id": "<s>", "ids": [2**33], "tokens": ["<s>"]}}
    ),
    "unknown kind": normalizer({"type": "Emoji"}),
    "no kind": normalizer({"prepend": "x"}),
    "a pre-tokenizer to normalize": normalizer(BYTE_LEVEL | {"type": "Metaspace"}),
    "a model that is none": tokenizer(model={"type": "GPT"}),
    "no model": {key: value for key, value in tokenizer().items() if key != "model"},
    "truncation below zero": tokenizer(
        truncation={"direction": "Right", "max_length": -2, "strategy": "LongestFirst", "stride": 0}
    ),
}


def content(file: Json | bytes) -> bytes:
    return file if isinstance(file, bytes) else json.dumps(file).encode()
