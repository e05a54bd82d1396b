"""What tokenizer.json must look like, checked before the tokenizers library sees it.

The library ends the process, panics or takes memory without bound over fields that this refuses.
What else may be wrong with a file it reports itself. Of two values of one key both read the last.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from shoal.graphs.input_files import decode_text
from shoal.graphs.text.byte_letters import byte_letters
from shoal.graphs.text.fields import FieldError, Fields, are_ids
from shoal.graphs.text.growth import (
    Change,
    decoder_growth,
    normalizer_change,
    parts,
    pre_tokenizer_change,
)
from shoal.graphs.text.token_bytes import TokenBytes

LONGEST_TOKENIZER_FILE = 64 << 20
"""Bytes of a tokenizer.json; the largest that are published have 33 MB."""

LONGEST_TOKEN = 4096
"""Characters of a token; the longest that are published have a few hundred."""

MOST_GROWTH = 1024
"""Bytes that a byte of text may become before it is cut into tokens."""

MOST_DECODER_GROWTH = 16
"""Bytes that a byte of a token may become when it is decoded."""

_MOST_ADDED_TOKENS = 1 << 14
_MOST_ADDED_BYTES = 4 << 20  # of all added tokens, normalized; each takes 70 bytes of memory
_MOST_FRAME_TOKENS = 64  # that begin and end a text
_LONGEST_WORD = 256  # characters; the library looks for tokens in a word in cubic time


@dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """A tokenizer.json whose parts are known.

    Attributes:
        source: Its JSON.
        growth: Bytes that a byte of text may become before it is cut into tokens.
        text_per_token: Bytes of text that a token may stand for; None where there is no bound.
        added: Tokens added to the model's, and their ids.
        special: Those that are left out of decoded text, and their ids.
        token_bytes: How tokens of the model's are spelled.
    """

    source: str
    growth: int
    text_per_token: int | None
    added: dict[str, int]
    special: dict[str, int]
    token_bytes: TokenBytes


def read_tokenizer_file(content: bytes) -> TokenizerFile:
    """Read and check the content of a tokenizer.json.

    Raises:
        ValueError: it is no JSON, or its fields are wrong.
        RecursionError: it is too deep.
    """
    if len(content) > LONGEST_TOKENIZER_FILE:
        raise ValueError(f"expected at most {LONGEST_TOKENIZER_FILE} bytes, found {len(content)}")
    source = decode_text(content)
    file = Fields(json.loads(source))
    normalizer = file.child_or_none("normalizer")
    pre_tokenizer = file.child_or_none("pre_tokenizer")
    changes = [normalizer_change(normalizer), pre_tokenizer_change(pre_tokenizer)]
    growth = math.prod(change.growth for change in changes)
    if growth > MOST_GROWTH:
        raise FieldError(
            f"normalizer: expected one that makes texts up to {MOST_GROWTH} times as long, found "
            "more"
        )
    decoder = file.child_or_none("decoder")
    if decoder_growth(decoder) > MOST_DECODER_GROWTH:
        raise FieldError(
            f"decoder: expected one that makes tokens up to {MOST_DECODER_GROWTH} times as long, "
            "found more"
        )
    _check_post_processor(file.child_or_none("post_processor"))
    added = _added_tokens(file, growth)
    _check_model(file.child("model"))
    return TokenizerFile(
        source=source,
        growth=growth,
        text_per_token=_text_per_token(file, changes, added),
        added=_ids(added),
        special=_ids(token for token in added if token.get("special") is True),
        token_bytes=TokenBytes(decoder),
    )


def _added_tokens(file: Fields, growth: int) -> list[Fields]:
    """The tokens added to those of the model; the library normalizes them as it loads."""
    if file.get("added_tokens") is None:
        return []
    added = file.children("added_tokens")
    size = 0
    for token in added:
        token.integer("id")
        text = token.text("content")
        size += len(text.encode("utf-8", "surrogatepass")) * (
            growth if token.get("normalized") else 1
        )
        if not 0 < len(text) <= LONGEST_TOKEN:
            raise token.error("content", f"1 to {LONGEST_TOKEN} characters", len(text))
    if len(added) > _MOST_ADDED_TOKENS:
        raise file.error("added_tokens", f"at most {_MOST_ADDED_TOKENS} tokens", len(added))
    if size > _MOST_ADDED_BYTES:
        raise file.error("added_tokens", f"at most {_MOST_ADDED_BYTES} normalized bytes", size)
    return added


def _ids(added: Iterable[Fields]) -> dict[str, int]:
    return {token.text("content"): token.integer("id") for token in added}


def _check_model(model: Fields) -> None:
    """Refuse ids and tokens that are out of bounds, and words that take too long to be cut."""
    vocab = model.get("vocab")
    tokens: Iterable[str]
    if isinstance(vocab, list):  # of Unigram: the id is the place
        tokens = [_scored(model, number, pair) for number, pair in enumerate(vocab)]
    else:
        model.child("vocab")
        tokens = vocab
        if vocab and not are_ids(vocab.values()):
            wrong = next(id_ for id_ in vocab.values() if not are_ids([id_]))
            raise model.error("vocab", "ids from 0 to 2**31 - 1", wrong)
    longest = max(map(len, tokens), default=0)
    if longest > LONGEST_TOKEN:
        raise model.error("vocab", f"tokens of at most {LONGEST_TOKEN} characters", longest)
    _check_merges(model)
    if model.get("max_input_chars_per_word") is not None:
        size = model.integer("max_input_chars_per_word")
        if size > _LONGEST_WORD:
            raise model.error("max_input_chars_per_word", f"at most {_LONGEST_WORD}", size)


def _check_merges(model: Fields) -> None:
    """Refuse merges whose second part lacks the prefix that the library cuts off."""
    prefix = model.get("continuing_subword_prefix")
    if not prefix or not isinstance(model.get("merges"), list):
        return
    prefix = model.text("continuing_subword_prefix")
    for number, merge in enumerate(model.items("merges")):
        match merge.split(" ") if isinstance(merge, str) else merge:
            case [str(), str(second)] if second.startswith(prefix):
                continue
        raise model.error(f"merges: {number}", "a second part with the prefix for those", merge)


def _scored(model: Fields, number: int, pair: object) -> str:
    match pair:
        case [str(token), float() | int()] if token:
            return token
    raise model.error(f"vocab: {number}", "a token and its score", pair)


def _check_post_processor(post_processor: Fields | None) -> None:
    """Refuse what repeats or drops a text, and more than a few tokens around it."""
    count = 0
    for part in parts(post_processor, "processors"):
        kind = part.text("type")
        if kind == "TemplateProcessing":
            count += _template_tokens(part)
        elif kind in ("BertProcessing", "RobertaProcessing"):
            for key in ("sep", "cls"):
                match part.items(key):
                    case [str(), id_] if are_ids([id_]):
                        count += 1
                    case found:
                        raise part.error(key, "a token and its id", found)
        elif kind != "ByteLevel":
            raise part.error("type", "TemplateProcessing or another known one", kind)
        if count > _MOST_FRAME_TOKENS:
            raise part.error("type", f"at most {_MOST_FRAME_TOKENS} tokens around a text", count)


def _template_tokens(part: Fields) -> int:
    """How many tokens a template puts around a text."""
    count = texts = 0
    tokens = part.child("special_tokens")
    for piece in part.children("single"):
        if piece.get("Sequence") is not None:
            texts += 1
            if piece.child("Sequence").text("id") != "A":
                raise piece.error("Sequence", "the text, A", piece.get("Sequence"))
            continue
        token = tokens.child(piece.child("SpecialToken").text("id"))
        ids = token.integers("ids")
        if len(token.items("tokens")) != len(ids):
            raise token.error("tokens", f"{len(ids)} tokens", len(token.items("tokens")))
        count += len(ids)
    if texts != 1:
        raise part.error("single", "the text once", texts)
    return count


def _text_per_token(file: Fields, changes: list[Change], added: list[Fields]) -> int | None:
    """Bytes of text that a token may stand for, None where text may get lost between tokens."""
    shrinking = math.prod(change.shrinking for change in changes)
    takes_blanks = any(token.get("lstrip") or token.get("rstrip") for token in added)
    model = file.child("model")
    if shrinking == math.inf or takes_blanks or not isinstance(model.get("merges"), list):
        return None
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    vocab: dict[str, int] = model.get("vocab")
    if _spells_bytes(file) and all(letter in vocab for letter in byte_letters()):
        longest = max(map(len, vocab))
    elif model.get("byte_fallback") is True and all(f"<0x{n:02X}>" in vocab for n in range(256)):
        longest = max(len(token.encode("utf-8", "surrogatepass")) for token in vocab)
    else:
        return None  # text without a token is dropped, or many characters become one token
    own = (len(token.text("content").encode("utf-8", "surrogatepass")) for token in added)
    return math.ceil(max([longest, *own]) * shrinking)


def _spells_bytes(file: Fields) -> bool:
    """Whether all bytes of a text become characters that stand for them."""
    normalizers = list(parts(file.child_or_none("normalizer"), "normalizers"))
    pre_tokenizers = parts(file.child_or_none("pre_tokenizer"), "pretokenizers")
    return any(part.get("type") == "ByteLevel" for part in (*normalizers[-1:], *pre_tokenizers))
