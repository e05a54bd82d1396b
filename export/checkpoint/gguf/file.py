"""The GGUF format: metadata and where the tensors lie, read with every length and count checked.

A file is a header (magic, version, two counts), keys with values, the tensors' names, sizes and
places, and from the next multiple of the alignment on their data. Numbers are little-endian.

Source: the GGUF specification of the ggml project, version 3.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal.graphs.errors import CheckpointError
from shoal.graphs.input_files import open_regular
from shoal.graphs.message_parts import shortened

TYPES = {0: "F32", 1: "F16", 8: "Q8_0", 30: "BF16"}
"""Types of tensors that can be read; Q8_0 is one float16 scale and 32 int8 values after another."""
OTHER_TYPES = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K"}
OTHER_TYPES |= {13: "Q5_K", 14: "Q6_K"}
BLOCKS = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34)}
"""Values and bytes of a block."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS |= {12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4  # of ggml

# Far above what the largest models need, whose vocabularies take some 10 MB.
_MAX_HEADER_BYTES = 100_000_000
_MAX_KEYS = 1 << 12
_MAX_TENSORS = 1 << 16
_MAX_TEXTS = 1 << 21  # of an array
_MAX_NAME_BYTES = 1 << 10
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor.

    Attributes:
        file: That holds it.
        type: A name; one of ``TYPES`` if it can be read.
        shape: As in PyTorch: the last size is that of a row.
        offset: Of its data from the start of the file, in bytes.
    """

    file: Path
    type: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        values, size = BLOCKS[self.type]
        return self.shape[-1] // values * size


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """All of a model's files.

    Attributes:
        path: The file that was named.
        metadata: Values by key, of the first file: numbers, texts, lists of texts, and arrays of
            numbers.
        tensors: By name.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufModel:
    """Read the header of a file, and of the files that go with it when it is one part of several.

    Raises:
        CheckpointError: a file is missing, damaged or no GGUF file.
    """
    paths = _parts(path)
    metadata, tensors = _read(paths[0])
    for part in paths[1:]:
        tensors |= _read(part)[1]
    expected = metadata.get("split.tensors.count", len(tensors))
    if type(expected) is not int or len(tensors) != expected:
        raise CheckpointError(
            f"{path}: expected {shortened(repr(expected))} tensors in {len(paths)} files, found "
            f"{len(tensors)}; download all parts again"
        )
    return GgufModel(path=path, metadata=metadata, tensors=tensors)


def _parts(path: Path) -> list[Path]:
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    number, count = int(match[2]), int(match[3])
    if not 1 <= number <= count:
        raise CheckpointError(
            f"{path}: expected a part between 1 and the number of parts, found {number} of "
            f"{count}; give the file the name it was published with"
        )
    paths = [path.with_name(f"{match[1]}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    missing = next((part.name for part in paths if not part.exists()), None)
    if missing is not None:
        raise CheckpointError(
            f"{path}: expected {count} parts side by side, found no {missing}; download it"
        )
    return paths


def _read(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            cursor = _Cursor(data)
            return _read_header(path, cursor)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}; check the path"
        ) from error
    except (ValueError, struct.error, OverflowError) as error:
        raise CheckpointError(
            f"{path}: expected a GGUF file, found: {error}; download it again"
        ) from error


def _read_header(path: Path, cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    magic, version = cursor.take(4), cursor.number("I")
    if magic != b"GGUF":
        raise ValueError(f"a file that begins with {magic!r}")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}, not {' or '.join(map(str, _VERSIONS))}")
    num_tensors, num_keys = cursor.count(_MAX_TENSORS, "tensors"), cursor.count(_MAX_KEYS, "keys")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.name()
        if key in metadata:
            raise ValueError(f"key {shortened(key)} twice")
        metadata[key] = cursor.value(cursor.number("I"))
    entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for _ in range(num_tensors):
        name, entry = cursor.name(), _read_entry(cursor)
        if name in entries:
            raise ValueError(f"tensor {shortened(name)} twice")
        entries[name] = entry
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment {shortened(repr(alignment))}")
    start = -(-cursor.place // alignment) * alignment
    tensors = {}
    for name, (kind, shape, offset) in entries.items():
        tensor = GgufTensor(file=path, type=kind, shape=shape, offset=start + offset)
        _check_tensor(name, tensor, offset % alignment == 0, cursor.size)
        tensors[name] = tensor
    _check_overlaps(tensors)
    return metadata, tensors


def _read_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int]:
    """Type, shape and offset of a tensor."""
    dimensions = cursor.number("I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    kind = cursor.number("I")
    return (TYPES | OTHER_TYPES).get(kind, f"type {kind}"), shape, cursor.number("Q")


def _check_tensor(name: str, tensor: GgufTensor, is_aligned: bool, size: int) -> None:
    if tensor.type not in BLOCKS:
        return  # what is not needed may have any type
    if not is_aligned or 0 in tensor.shape or tensor.shape[-1] % BLOCKS[tensor.type][0]:
        raise ValueError(
            f"{shortened(name)}: {tensor.type} of shape {list(tensor.shape)} out of place"
        )
    end = tensor.offset + math.prod(tensor.shape[:-1]) * tensor.row_bytes
    if end > size:
        raise ValueError(f"{shortened(name)}: data up to byte {end} of {size}")


def _check_overlaps(tensors: dict[str, GgufTensor]) -> None:
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < end:
            raise ValueError(f"{shortened(name)} overlaps {shortened(before)}")
        if tensor.type in BLOCKS:
            end = tensor.offset + math.prod(tensor.shape[:-1]) * tensor.row_bytes
            before = name


class _Cursor:
    """Takes values one after another; raises ValueError where the file ends or has too many."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.place = 0
        self.size = len(data)
        self._end = min(self.size, _MAX_HEADER_BYTES)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        if count > self._end - self.place:
            raise ValueError(f"{count} bytes at byte {self.place} of {self._end}")
        self.place += count
        return self._data[self.place - count : self.place]

    def number(self, form: str) -> Any:
        """One number; ``form`` as in struct."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def count(self, most: int, what: str) -> int:
        """How many there are of something, ``most`` at most."""
        found: int = self.number("Q")
        if found > most:
            raise ValueError(f"{found} {what}, more than {most}")
        return found

    def name(self) -> str:
        """A text of a key's or a tensor's length."""
        return self.take(self.count(_MAX_NAME_BYTES, "bytes of a name")).decode("utf-8")

    def text(self) -> str:
        """A length and as many bytes of UTF-8."""
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        """A value of metadata."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            item = self.number("I")
            if item == _STRING:
                return [self.text() for _ in range(self.count(_MAX_TEXTS, "texts"))]
            if item not in _SCALARS:
                raise ValueError(f"an array of type {item}")
            form = np.dtype(_SCALARS[item]).newbyteorder("<")
            return np.frombuffer(self.take(self.number("Q") * form.itemsize), form)
        if kind not in _SCALARS:
            raise ValueError(f"a value of type {kind}")
        return self.number(_SCALARS[kind])
