"""Files that hold a context: versioned, checksummed, tied to one bundle, written atomically.

    8 bytes    b"shoalctx"
    8 bytes    length of the header, little-endian
    header     JSON: format_version, bundle (sha256 of the manifest), cache (type of its values),
               arrays (name, dtype and shape of each, in order), note (whatever the caller adds)
    arrays     one after the other, C order, little-endian
    32 bytes   sha256 of everything before

A file comes from anywhere, so everything is checked before it is believed, and its size before
anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from shoal.graphs.cache_types import CacheType
from shoal.graphs.contract import MAX_DIMENSIONS
from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.graphs.input_files import open_regular
from shoal.runtime.atomic_file import atomic_file
from shoal.runtime.engine.arrays import Arrays

FORMAT_VERSION = 1

_MAGIC = b"shoalctx"
_DTYPES = ("int64", "float32", "float16", "uint8")
_MAX_HEADER_BYTES = 64 << 20
_DIGEST_BYTES = 32
_BLOCK_BYTES = 4 << 20
_MAX_ARRAY_ITEMS = 1 << 40


@dataclass(frozen=True, kw_only=True)
class ContextFile:
    """What a file holds."""

    arrays: dict[str, npt.NDArray[Any]]
    note: dict[str, Any]

    def has_state_of(self, observer: str) -> bool:
        """Whether an observer of this name followed the context when it was saved."""
        return any(name.startswith(f"{observer}.") for name in self.arrays)


def write_context_file(
    path: Path, *, bundle: str, cache_type: CacheType, arrays: Arrays, note: dict[str, Any]
) -> None:
    """Write a file; it appears under its name when it is complete and on the disk.

    Args:
        path: where; a file that is there already is replaced.
        bundle: sha256 of the manifest of the bundle it belongs to.
        cache_type: type of its latent cache.
        arrays: arrays of int64 and of the types of latent caches.
        note: JSON values to keep with it.

    Raises:
        RuntimeFailure: the disk is full or refuses. What was there before is still there.
    """
    with atomic_file(path, "the context") as file:
        _write(file, _header(bundle, cache_type, arrays, note), arrays.values())


def read_context_file(path: Path, *, bundle: str, cache_type: CacheType) -> ContextFile:
    """Read a file that ``write_context_file`` wrote.

    Args:
        path: the file.
        bundle: sha256 of the manifest of the bundle it must belong to.
        cache_type: the type its latent cache must have.

    Raises:
        InputError: no such file, not a context, a newer format, of another bundle or cache type,
            or damaged.
        RuntimeFailure: not enough memory.
    """
    try:
        with open_regular(path) as file:
            return _read(file, path, bundle, cache_type)
    except OSError as error:
        raise InputError(
            f"{path}: the context cannot be read ({error.strerror or error}); check the path"
        ) from error
    except MemoryError as error:
        raise RuntimeFailure(f"{path}: no memory for the context; free memory") from error


def _header(bundle: str, cache_type: CacheType, arrays: Arrays, note: dict[str, Any]) -> bytes:
    described = [
        {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
        for name, array in arrays.items()
    ]
    content = {
        "format_version": FORMAT_VERSION,
        "bundle": bundle,
        "cache": cache_type,
        "arrays": described,
        "note": note,
    }
    return json.dumps(content, ensure_ascii=True).encode()


def _write(file: IO[bytes], header: bytes, arrays: Iterable[npt.NDArray[Any]]) -> None:
    digest = hashlib.sha256()
    for part in (_MAGIC, len(header).to_bytes(8, "little"), header):
        digest.update(part)
        file.write(part)
    for array in arrays:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        digest.update(content)
        file.write(content)
    file.write(digest.digest())


def _read(file: IO[bytes], path: Path, bundle: str, cache_type: CacheType) -> ContextFile:
    size = os.fstat(file.fileno()).st_size
    digest = hashlib.sha256()
    start = file.read(16)
    length = int.from_bytes(start[8:], "little")
    if start[:8] != _MAGIC or len(start) < 16:
        raise InputError(f"{path}: expected a saved context, found another kind of file")
    if length > min(_MAX_HEADER_BYTES, size - 16 - _DIGEST_BYTES):
        raise damaged(path)
    header = file.read(length)
    digest.update(start + header)
    content = _parse(header, path)
    _check_origin(content, path, bundle, cache_type)
    shapes = _shapes(content, path)
    expected = sum(math.prod(shape) * dtype.itemsize for dtype, shape in shapes.values())
    if 16 + length + expected + _DIGEST_BYTES != size:
        raise damaged(path)
    arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in shapes.items()}
    for array in arrays.values():
        target = array.reshape(-1).view(np.uint8).data
        for begin in range(0, len(target), _BLOCK_BYTES):
            block = target[begin : begin + _BLOCK_BYTES]
            if file.readinto(block) != len(block):  # type: ignore[attr-defined]
                raise damaged(path)
            digest.update(block)
    if file.read() != digest.digest():
        raise damaged(path)
    return ContextFile(arrays=arrays, note=content["note"])


def _parse(header: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise damaged(path) from error
    if not isinstance(content, dict) or not isinstance(content.get("note"), dict):
        raise damaged(path)
    return content


def _check_origin(content: dict[str, Any], path: Path, bundle: str, cache_type: CacheType) -> None:
    for key, expected, advice in (
        ("format_version", FORMAT_VERSION, "it is of another shoal; start a new context"),
        ("bundle", bundle, "it belongs to another bundle; open that one or start a new context"),
        ("cache", cache_type, "open the bundle with that cache type or start a new context"),
    ):
        if content.get(key) != expected:
            raise InputError(
                f"{path}: expected a context with {key} {expected}, found "
                f"{str(content.get(key))[:80]!r}; {advice}"
            )


def _shapes(
    content: dict[str, Any], path: Path
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    shapes = {}
    try:
        for entry in content["arrays"]:
            shape = entry["shape"]
            if entry["dtype"] not in _DTYPES or not _is_shape(shape):
                raise damaged(path)
            shapes[str(entry["name"])] = np.dtype(entry["dtype"]), tuple(shape)
    except (KeyError, TypeError) as error:
        raise damaged(path) from error
    return shapes


def _is_shape(shape: Any) -> bool:
    """Whether NumPy can make an array of it, if there is memory."""
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        return False
    if not all(type(size) is int and 0 <= size <= _MAX_ARRAY_ITEMS for size in shape):
        return False
    # NumPy multiplies the others even where one is zero.
    return bool(math.prod(max(size, 1) for size in shape) <= _MAX_ARRAY_ITEMS)


def damaged(path: Path) -> InputError:
    """The refusal of a file whose content is not what was saved."""
    return InputError(f"{path}: the context is damaged or incomplete; start a new one")
