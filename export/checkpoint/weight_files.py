"""Which files hold the weights of a checkpoint in safetensors: one rule for folders and the hub.

As in transformers, model.safetensors counts wherever it is there, else the shards that
model.safetensors.index.json names. An index that a single file has left over is not looked at.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from shoal.graphs.errors import CheckpointError
from shoal.graphs.input_files import read_json
from shoal.graphs.message_parts import shortened

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_SUFFIX = ".safetensors"
_LONGEST_INDEX = 64 << 20  # bytes; of the models published so far, the largest has 14 MB
_MOST_SHARDS = 10_000
_SPECIAL = frozenset("/\\*?[]")  # they lead elsewhere, or stand for several files
_LONGEST_NAME = 255  # bytes; no system has longer ones


def weights_file(there: Container[str]) -> str | None:
    """SINGLE_FILE or INDEX_FILE, whichever says where the weights are; None if neither does.

    Args:
        there: names of the files that there are.
    """
    return next((file for file in (SINGLE_FILE, INDEX_FILE) if file in there), None)


def read_index(path: Path) -> dict[str, list[str]]:
    """Names of the tensors in each shard, by the shard's file name, both sorted.

    Args:
        path: of model.safetensors.index.json.

    Raises:
        CheckpointError: the file is damaged, or names files that could be elsewhere.
    """
    try:
        index = read_json(path, _LONGEST_INDEX)
    except (OSError, ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path}: expected JSON, found: {exc}; download it again") from exc
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise CheckpointError(
            f"{path}: expected weight_map to give a file for each tensor; download it again"
        )
    shards: dict[str, list[str]] = {file: [] for file in sorted(set(places.values()))}
    _check_names(path, shards)
    for name in sorted(places):
        shards[places[name]].append(name)
    return shards


def _check_names(path: Path, shards: dict[str, list[str]]) -> None:
    if len(shards) > _MOST_SHARDS:
        raise CheckpointError(
            f"{path}: expected at most {_MOST_SHARDS} files, found {len(shards)}; download it again"
        )
    for file in shards:
        if not _is_plain(file):
            raise CheckpointError(
                f"{path}: expected plain names of {_SUFFIX} files, found "
                f"{shortened(repr(file))}; download it again"
            )


def _is_plain(file: str) -> bool:
    return (
        file.isprintable()
        and file.endswith(_SUFFIX)
        and not file.startswith(".")
        and not _SPECIAL & set(file)
        and len(file.encode("utf-8")) <= _LONGEST_NAME
    )
