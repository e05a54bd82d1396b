"""Bounds on what a tokenizer makes of a text, against what the library makes of it."""

from __future__ import annotations

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tests.graphs.text.hostile_tokenizers import (
    BPE,
    BYTE_LEVEL,
    DECODERS,
    NORMALIZERS,
    PARTS,
    PRE_TOKENIZERS,
    VOCAB,
    Json,
    charsmap,
    content,
    in_turn,
    precompiled,
    replace,
    tokenizer,
)
from tokenizers import Tokenizer

from shoal.graphs.errors import BundleError, InputError
from shoal.graphs.input_files import LONGEST_TEXT
from shoal.graphs.text.charsmap import longest_replacement
from shoal.graphs.text.fields import Fields
from shoal.graphs.text.growth import decoder_growth, normalizer_change, pre_tokenizer_change
from shoal.graphs.text.library_tokenizer import LibraryTokenizer
from shoal.graphs.text.tokenizer_file import read_tokenizer_file

pytestmark = pytest.mark.dependencies

CORPUS = Path(__file__).parents[3] / "graphs" / "data" / "shipped.txt"
# What grows and shrinks most: a phrase in a letter, letters of mathematics with accents, capitals
# whose small letters have fewer or more bytes.
WORST = ["\ufdfa", "\U0001d42e\u0308\u0304", "\u1f82", "\u212a", "\u0130", "\u1100\u1161\u11a8"]
TEXTS = st.lists(
    st.sampled_from([*WORST, " ", "  ", "a", "-", "1", "\n"]) | st.text(max_size=3), max_size=8
).map("".join)
GROWING: dict[str, Json] = {
    **NORMALIZERS,
    "a regex of nothing": replace("a*", "xyz", "Regex"),
    "groups": replace("(.)(.)", "$1$2$1", "Regex"),
    "long": in_turn("normalizers", [replace("a", "bbb"), replace("b", "ccc")]),
    "start": in_turn("normalizers", [{"type": "Prepend", "prepend": "aé"}, replace("a", "bb")]),
    "charsmap": precompiled(charsmap([1 << 8 | 1 << 10, *[1 << 31] * 255], b"ABC\0")),
}
LONGEST = 16  # characters of the longest token of KEEPING
KEEPING: dict[str, Json | None] = {
    "none": None,
    "accents": {"type": "NFC"},
    "accents and widths": {"type": "NFKC"},
    "small letters": {"type": "Lowercase"},
    "blanks": replace(" ", "\u2581"),
    "two for one": replace("ab", "a"),
}


def size(text: str) -> int:
    return len(text.encode())


@functools.cache
def library_part(place: str, name: str) -> Any:
    """A part of a tokenizer as the library made it."""
    file = tokenizer(**{place: (PARTS | {"normalizer": GROWING})[place][name]})
    return getattr(Tokenizer.from_str(content(file).decode()), place)


@pytest.mark.parametrize("name", GROWING)
@settings(max_examples=25, deadline=None)
@given(text=TEXTS)
def test_a_normalizer_makes_no_text_longer_than_it_may(name: str, text: str) -> None:
    bound = normalizer_change(Fields(GROWING[name])).growth
    try:
        found = library_part("normalizer", name).normalize_str(text)
    except BaseException as error:
        assert type(error).__name__ == "PanicException"  # noqa: PT017
        return
    assert size(found) <= bound * max(1, size(text))


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(text=TEXTS)
def test_a_pre_tokenizer_makes_no_text_longer_than_it_may(name: str, text: str) -> None:
    bound = pre_tokenizer_change(Fields(PRE_TOKENIZERS[name])).growth
    pieces = library_part("pre_tokenizer", name).pre_tokenize_str(text)
    assert sum(size(piece) for piece, _ in pieces) <= bound * size(text)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=25, deadline=None)
@given(tokens=st.lists(st.sampled_from(["<0xE9>", "Ã", "▁a", "##b", "|", "x</w>"]) | TEXTS))
def test_a_decoder_makes_no_token_longer_than_it_may(name: str, tokens: list[str]) -> None:
    bound = decoder_growth(Fields(DECODERS[name]))
    found = library_part("decoder", name).decode(tokens)
    assert size(found) <= bound * sum(size(token) + 1 for token in tokens)


def keeping(normalizer: Json | None, model: Json = BPE) -> Json:
    vocab = VOCAB | {"Ġ" * 2: 300, "Ġ" * 4: 301, "Ġ" * 8: 302, "Ġ" * LONGEST: 303}
    merges = [["Ġ" * (length // 2), "Ġ" * (length // 2)] for length in (2, 4, 8, LONGEST)]
    return tokenizer(
        normalizer=normalizer, model=model | {"vocab": vocab, "merges": merges}, added_tokens=[]
    )


@functools.cache
def library_and_bound(name: str) -> tuple[Tokenizer, int]:
    file = read_tokenizer_file(content(keeping(KEEPING[name])))
    assert file.text_per_token is not None
    return Tokenizer.from_str(file.source), file.text_per_token


@pytest.mark.parametrize("name", KEEPING)
@settings(max_examples=50, deadline=None)
@given(text=TEXTS | st.integers(0, 200).map(lambda count: " " * count))
def test_a_token_stands_for_no_more_text_than_it_may(name: str, text: str) -> None:
    found, bound = library_and_bound(name)
    assert size(text) <= bound * len(found.encode(text, add_special_tokens=False).ids)


def test_the_bound_on_text_is_that_of_the_longest_token() -> None:
    assert read_tokenizer_file(content(keeping(None))).text_per_token == LONGEST
    fallback = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁▁": 256}
    file = tokenizer(
        model=BPE | {"vocab": fallback, "merges": [], "byte_fallback": True},
        pre_tokenizer=None,
        added_tokens=[],
    )
    assert read_tokenizer_file(content(file)).text_per_token == len("<0x00>")


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "StripAccents"}},
        {"normalizer": {"type": "Nmt"}},
        {"normalizer": replace(" ", "")},
        {"normalizer": replace(" {2,}", " ", "Regex")},
        {"pre_tokenizer": in_turn("pretokenizers", [{"type": "WhitespaceSplit"}, BYTE_LEVEL])},
        {"pre_tokenizer": {"type": "Digits", "individual_digits": True}},
        {"model": BPE | {"vocab": {"h": 0, "e": 1}, "merges": []}},
        {"model": BPE | {"end_of_word_suffix": "</w>"}},
        {"model": {"type": "WordLevel", "unk_token": "h", "vocab": VOCAB}},
        {
            "added_tokens": [
                {"id": 258, "content": "<s>", "special": True, "single_word": False}
                | {"lstrip": False, "rstrip": True, "normalized": False}
            ]
        },
    ],
    ids=lambda parts: json.dumps(parts)[:50],
)
def test_where_text_may_get_lost_there_is_no_bound(parts: Json) -> None:
    assert read_tokenizer_file(content(tokenizer(**parts))).text_per_token is None


def open_tokenizer(file: Json) -> LibraryTokenizer:
    path = Path("tokenizer.json")
    return LibraryTokenizer(content(file), path, error=BundleError, advice="re-export it")


def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded() -> None:
    found = open_tokenizer(keeping(None))
    found._library = None  # type: ignore[assignment]
    with pytest.raises(
        InputError, match=r"^text: expected at most 131072 bytes, the most that 8192"
    ):
        found.encode("x" * 131_073, max_tokens=8192)
    with pytest.raises(InputError, match=f"^text: expected at most {LONGEST_TEXT} characters"):
        found.encode("x" * (LONGEST_TEXT + 1))


def test_a_text_that_fits_is_never_refused() -> None:
    found = open_tokenizer(keeping(None))
    text = " " * (LONGEST * 8192)
    assert len(found.encode(text, add_special_tokens=False, max_tokens=8192).ids) == 8192
    short = "x" * 60_000  # does not fit, and takes no time
    assert len(found.encode(short, add_special_tokens=False, max_tokens=1).ids) == 60_000


def test_a_text_that_may_grow_out_of_bounds_is_refused() -> None:
    found = open_tokenizer(tokenizer(normalizer=replace("l", "x" * 500)))
    assert len(found.encode("ll", add_special_tokens=False).ids) == 1000
    with pytest.raises(InputError, match=r"^text: expected at most \d+ bytes, because tokenizer"):
        found.encode("o" * 100_000)
    usual = open_tokenizer(keeping(replace(" ", "\u2581")))
    assert len(usual.encode("o" * 100_000, add_special_tokens=False).ids) == 100_000


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc_cf"])
def test_the_tables_that_sentencepiece_makes_are_good(rule: str) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        input=str(CORPUS),
        model_writer=model,
        vocab_size=200,
        model_type="char",
        normalization_rule_name=rule,
        character_coverage=0.98,
        minloglevel=2,
    )
    found = ModelProto.FromString(model.getvalue()).normalizer_spec.precompiled_charsmap
    assert longest_replacement(base64.b64encode(found).decode()) == size("صلى الله عليه وسلم")
