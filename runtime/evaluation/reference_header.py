"""What a stored reference belongs to: the header of its file, and its checks.

A file may come from anywhere, so every value is checked before it is used, and what sizes follow
from is compared with the model and the text at hand rather than believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from shoal.graphs.errors import InputError

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 8 << 20
"""Far above what the longest text needs: a window takes about 5 bytes."""

_MAX_SIZE = 1 << 24  # entries of a vocabulary, tokens of a window
_MAX_LAYERS = 1 << 16
_MAX_TEXT = 4096  # characters of a name


@dataclass(frozen=True, kw_only=True)
class ReferenceHeader:
    """What a stored reference belongs to."""

    format_version: int = FORMAT_VERSION
    model: dict[str, str]  # sha256 of its config.json, name, weights
    tokenizer: str  # sha256
    text: dict[str, Any]  # sha256, names
    vocab_size: int
    moe_layers: tuple[int, ...]
    num_experts_per_tok: int
    windows: tuple[int, ...]  # tokens of each
    continuations: tuple[list[int], ...]  # greedy tokens after the first windows' beginnings

    def to_json(self) -> bytes:
        """As it stands in the file."""
        return json.dumps(asdict(self), ensure_ascii=True).encode()


def parse_header(content: bytes, path: Path) -> ReferenceHeader:
    """Read a header.

    Args:
        content: JSON.
        path: of the file, for messages.

    Raises:
        InputError: a newer format, or a value that no header has.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(path) from error
    if not isinstance(found, dict):
        raise damaged(path)
    version = found.get("format_version")
    if _is_integer(version, 1, 1 << 31) and version != FORMAT_VERSION:
        raise InputError(
            f"{path}: expected a reference of format {FORMAT_VERSION}, found {version}; store it "
            "again"
        )
    if not _is_header(found):
        raise damaged(path)
    tuples = {key: tuple(found[key]) for key in ("moe_layers", "windows", "continuations")}
    return ReferenceHeader(**(found | tuples))


def damaged(path: Path) -> InputError:
    """The refusal of a file that ``save_reference`` did not write."""
    return InputError(f"{path}: the reference is damaged or incomplete; store it again")


def _is_header(found: Mapping[str, Any]) -> bool:
    if found.keys() != {field.name for field in fields(ReferenceHeader)}:
        return False
    last_token = found["vocab_size"] - 1 if _is_integer(found["vocab_size"], 1, _MAX_SIZE) else -1
    return (
        _is_integer(found["format_version"], FORMAT_VERSION, FORMAT_VERSION)
        and last_token >= 0
        and _is_record(found["model"], sha256=_is_digest, name=_is_text, weights=_is_text)
        and _is_digest(found["tokenizer"])
        and _is_record(found["text"], sha256=_is_digest, names=_are_texts)
        and _are_integers(found["moe_layers"], 0, _MAX_LAYERS)
        and _is_integer(found["num_experts_per_tok"], 0, _MAX_LAYERS)
        and _are_integers(found["windows"], 1, _MAX_SIZE)
        and isinstance(found["continuations"], list)
        and all(_are_integers(tokens, 0, last_token) for tokens in found["continuations"])
    )


def _is_record(value: Any, **checks: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == checks.keys()
        and all(check(value[key]) for key, check in checks.items())
    )


def _is_integer(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _are_integers(value: Any, low: int, high: int) -> bool:
    return isinstance(value, list) and all(_is_integer(item, low, high) for item in value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(item) for item in value)
