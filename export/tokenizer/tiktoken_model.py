"""tiktoken.model, the vocabulary file of Moonlight and Kimi, for the tokenizers library.

The file has one line for every token: its bytes in base64 and its rank. Text is cut by a pattern,
and within each piece the neighbours whose joint bytes have the lowest rank are merged until none
have one. The file names neither the pattern nor the special tokens: the pattern is that of the
only models that ship the file, and the special tokens follow the ranks, named in
tokenizer_config.json or else ``<|reserved_token_ID|>``.

The tokenizers library merges pairs instead of bytes. A token may come about by any cut into two
others, so each of its cuts is a merge of the token's rank.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from shoal.graphs.errors import CheckpointError
from shoal.graphs.input_files import read_bytes
from shoal.graphs.text.byte_letters import byte_letters
from shoal.graphs.text.tokenizer_file import LONGEST_TOKENIZER_FILE

TIKTOKEN_FILE = "tiktoken.model"

_WORD_END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
PATTERN = "|".join(
    [
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_WORD_END}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_WORD_END}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""Runs of Chinese characters; words, split where capitals follow small letters; up to three digits;
punctuation; line ends; blanks."""


def read_tiktoken(path: Path, added: Mapping[int, AddedToken], vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Args:
        path: tiktoken.model.
        added: special tokens that tokenizer_config.json names, by id.
        vocab_size: of config.json; ids from the last rank up to here are special tokens.

    Raises:
        CheckpointError: the file is damaged or has more tokens than the model.
    """
    ranks = _read_ranks(path)
    if len(ranks) > vocab_size:
        raise CheckpointError(
            f"{path}: expected at most vocab_size {vocab_size} tokens, found {len(ranks)}; "
            "config.json and the tokenizer must belong together"
        )
    tokenizer = Tokenizer(byte_level_bpe(ranks))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token in range(len(ranks), vocab_size):
        name = added.get(token, AddedToken(f"<|reserved_token_{token}|>", special=True))
        tokenizer.add_tokens([AddedToken(name.content, special=name.special, normalized=False)])
    return tokenizer


def byte_level_bpe(ranks: Mapping[bytes, int]) -> models.BPE:
    """The byte-pair model of tokens whose ids are their ranks."""
    letters = byte_letters()
    spelled = {token: "".join(map(letters.__getitem__, token)) for token in ranks}
    merges = [
        (spelled[left], spelled[right])
        for token in sorted(ranks, key=ranks.__getitem__)
        for left, right in _cuts(token, ranks)
    ]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    # A piece that is a token needs no merges to be one.
    return models.BPE(vocabulary, merges, ignore_merges=True)


def _cuts(token: bytes, ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """All cuts of a token into two tokens."""
    for place in range(1, len(token)):
        left, right = token[:place], token[place:]
        if left in ranks and right in ranks:
            yield left, right


def _read_ranks(path: Path) -> dict[bytes, int]:
    try:
        lines = [
            line.split() for line in read_bytes(path, LONGEST_TOKENIZER_FILE).splitlines() if line
        ]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (OSError, ValueError, binascii.Error) as error:
        raise CheckpointError(
            f"{path}: expected a token in base64 and its rank on every line, found: {error}; "
            "download it again"
        ) from error
    if sorted(ranks.values()) != list(range(len(lines))):
        raise CheckpointError(
            f"{path}: expected the ranks 0 to {len(lines) - 1}, each once and for another token; "
            "download it again"
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise CheckpointError(
            f"{path}: expected a token for every byte, found none for {missing[0]:#04x}; "
            "download it again"
        )
    return ranks
