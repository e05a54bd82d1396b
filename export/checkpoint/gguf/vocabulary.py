"""The vocabulary of a GGUF file as tokenizer.json and tokenizer_config.json.

A file holds tokens, merges and the name of the rules by which text is cut before it is merged; the
rules themselves are here.

Source: llama.cpp, src/llama-vocab.cpp @ b9000, for which rules go by which name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from shoal.graphs.errors import CheckpointError
from shoal.graphs.message_parts import shortened

_CONTROL, _USER_DEFINED = 3, 4

# Letters with case, but for those of some scripts and of mathematics.
_OTHER_CASED = (
    r"\x{560}-\x{58F}\x{10C7}-\x{10FF}\x{1C80}-\x{1C8F}\x{2D00}-\x{2D2F}\x{A790}-\x{A7FF}"
    r"\x{AB30}-\x{AB6F}\x{10570}-\x{105BF}\x{10D50}-\x{10D8F}\x{16E40}-\x{16E7F}"
    r"\x{1D400}-\x{1D7FF}\x{1DF00}-\x{1DFFF}"
)
_CASED = rf"[\p{{Lu}}\p{{Ll}}\p{{Lt}}&&[^{_OTHER_CASED}]]"
_CJK = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
_PUNCTUATION = r"[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]"

CUTS: dict[str, tuple[str, ...]] = {
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?{_CASED}+",
        rf"\s?{_PUNCTUATION}+",
        r"\s+$",
        _CJK,
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+",
        r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}
"""Patterns whose matches are pieces of text, each applied to the pieces the last one has left."""

_GPT_2 = ("gpt-2", "default")


def tokenizer_of(path: Path, metadata: dict[str, Any]) -> dict[str, bytes]:
    """Content of the bundle's tokenizer files by name.

    Raises:
        CheckpointError: the vocabulary is damaged, or of a kind that is not supported.
    """
    try:
        tokenizer, config = _tokenizer(path, metadata)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path}: expected a vocabulary in tokenizer.ggml, found {shortened(repr(error))}; "
            "download it again"
        ) from error
    return {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode("utf-8"),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=1).encode("utf-8"),
    }


def _tokenizer(path: Path, metadata: dict[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    kind, cuts = _text(metadata, "ggml.model"), _text(metadata, "ggml.pre", "default")
    if kind != "gpt2" or not (cuts in CUTS or cuts in _GPT_2):
        raise CheckpointError(
            f"{path}: expected a tokenizer of kind 'gpt2' with the rules {', '.join(CUTS)} or "
            f"{', '.join(_GPT_2)}, found {shortened(repr(kind))} with {shortened(repr(cuts))}; "
            "export the original checkpoint"
        )
    tokens, kinds = _texts(metadata, "tokens"), metadata["tokenizer.ggml.token_type"]
    if not isinstance(kinds, np.ndarray):
        raise TypeError("types of tokens that are no numbers")
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or len(kinds) != len(tokens):
        raise ValueError("tokens twice or without a type")
    tokenizer = Tokenizer(models.BPE(vocabulary, _merges(metadata, vocabulary)))
    tokenizer.pre_tokenizer = _pre_tokenizer(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds.tolist(), strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer, _config(metadata, tokens)


def _merges(metadata: dict[str, Any], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for merge in _texts(metadata, "merges"):
        first, _, second = merge.partition(" ")
        if not (first and second and vocabulary.keys() >= {first, second, first + second}):
            raise ValueError(f"a merge of what are no tokens: {merge}")
        merges.append((first, second))
    return merges


def _text(metadata: dict[str, Any], key: str, *default: str) -> str:
    """The text under ``key``; a default makes it optional."""
    found = metadata.get(f"tokenizer.{key}", *default)
    if not isinstance(found, str):
        raise TypeError(f"{key} that is no text")
    return found


def _texts(metadata: dict[str, Any], key: str) -> list[str]:
    found = metadata[f"tokenizer.ggml.{key}"]
    if not isinstance(found, list):
        raise TypeError(f"{key} that are no texts")
    return found


def _pre_tokenizer(cuts: str) -> pre_tokenizers.Sequence:
    by_rules = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cuts in _GPT_2)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in CUTS.get(cuts, ())]
    return pre_tokenizers.Sequence([*splits, by_rules])


def _config(metadata: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    """What tokenizer_config.json says of such a vocabulary."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in ("bos", "eos"):
        id_ = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if id_ is not None:
            if type(id_) is not int or not 0 <= id_ < len(tokens):
                raise ValueError(f"a token {name} that is none of the {len(tokens)} tokens")
            config[f"{name}_token"] = tokens[id_]
    config["add_bos_token"] = bool(metadata.get("tokenizer.ggml.add_bos_token", False))
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = _text(metadata, "chat_template")
    return config
