"""The tokens that begin and end a text, which the runtime must know."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.graphs.errors import CheckpointError
from shoal.graphs.input_files import read_json

GENERATION_CONFIG_FILE = "generation_config.json"


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Token ids, all within the vocabulary."""

    eos_token_ids: tuple[int, ...]  # any of them ends an answer
    bos_token_id: int | None


Source = tuple[Path, dict[str, Any]]
"""A file that may name special tokens, and what is in it."""


def generation_config(folder: Path) -> Source:
    """generation_config.json of a checkpoint folder; empty where there is none.

    Raises:
        CheckpointError: it is no JSON object.
    """
    path = folder / GENERATION_CONFIG_FILE
    return path, read_object(path)


def read_special_tokens(sources: Sequence[Source], vocab_size: int) -> SpecialTokens:
    """The special tokens of a checkpoint.

    Args:
        sources: the files that may name them; of two that do the first counts.
        vocab_size: number of token ids.

    Raises:
        CheckpointError: an id is none of the vocabulary.
    """
    eos = _token_ids("eos_token_id", sources, vocab_size)
    bos = _token_ids("bos_token_id", sources, vocab_size)
    return SpecialTokens(eos_token_ids=eos, bos_token_id=bos[0] if bos else None)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; empty when there is no such file.

    Raises:
        CheckpointError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected JSON, found: {error}; download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: expected a JSON object, found {type(content).__name__}; download it again"
        )
    return content


def _token_ids(key: str, sources: Sequence[Source], vocab_size: int) -> tuple[int, ...]:
    """Token ids under ``key`` of the first source that has it; one id or a list of them."""
    for path, content in sources:
        value = content.get(key)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
            raise CheckpointError(
                f"{path}: {key}: expected token ids below vocab_size {vocab_size}, found "
                f"{reprlib.repr(value)}; correct it or download the file again"
            )
        return tuple(dict.fromkeys(ids))
    return ()
