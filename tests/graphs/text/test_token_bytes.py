"""Bytes of single tokens add up to the bytes of the text, whatever characters they cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from shoal.graphs.errors import BundleError
from shoal.graphs.text.fields import Fields
from shoal.graphs.text.library_tokenizer import LibraryTokenizer
from shoal.graphs.text.token_bytes import TokenBytes

TINY = Path(__file__).parents[3] / "checkpoints" / "tiny-v3" / "tokenizer.json"
BLANK = "\u2581"


def byte_fallback() -> bytes:
    """A vocabulary of bytes and letters as sentencepiece models have it."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), BLANK, *"abcdefgh", "<|end|>"]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", BLANK)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer.to_str().encode()


def metaspace() -> bytes:
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate([BLANK, *"abc", "é"])}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return tokenizer.to_str().encode()


def opened(content: bytes) -> LibraryTokenizer:
    return LibraryTokenizer(content, Path("tokenizer.json"), error=BundleError, advice="re-export")


TOKENIZERS = {"byte-level": opened(TINY.read_bytes()), "byte-fallback": opened(byte_fallback())}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30) | st.sampled_from(["\u20ac \U0001f41f", "na\u00efve  h\u00e9 "]))
def test_bytes_of_tokens_add_up_to_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_token_may_be_half_a_character(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("\U0001f41f", add_special_tokens=False).ids
    parts = [tokenizer.token_bytes(id_) for id_ in ids]
    assert len(parts) > 1
    assert b"".join(parts).decode() == "\U0001f41f"


def test_blanks_of_metaspace_are_spaces() -> None:
    tokenizer = opened(metaspace())
    ids = tokenizer.encode("a b\u00e9", add_special_tokens=False).ids
    assert [tokenizer.token_bytes(id_) for id_ in ids] == [b"a", b" ", b"b", b"\xc3\xa9"]


def test_added_tokens_have_their_names_and_other_ids_nothing() -> None:
    tokenizer = TOKENIZERS["byte-fallback"]
    end = tokenizer.token_id("<|end|>")
    assert end is not None
    assert tokenizer.token_bytes(end) == b"<|end|>"
    assert tokenizer.token_bytes(end + 1) == b""


def test_letters_that_stand_for_no_byte_are_text() -> None:
    decoder: dict[str, Any] = json.loads(decoders.ByteLevel().__getstate__())
    assert TokenBytes(Fields(decoder)).of("\u4e2d") == "\u4e2d".encode()
    assert TokenBytes(None).of("\u00e9") == "\u00e9".encode()
