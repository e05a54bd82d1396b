"""Read tensors from a folder of safetensors files, one at a time and without keeping any.

Everything that can be known from the files' headers is checked when the folder is opened. Reading
copies into fresh memory instead of mapping the file: pages of a mapping would count as memory of
the process, and an export must stay within bounds whatever the size of the checkpoint.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.export.checkpoint.fp8 import FP8_DTYPE, apply_scales, scale_name
from shoal.export.checkpoint.stored_tensors import TensorHeader, problems_message
from shoal.export.checkpoint.weight_files import (
    INDEX_FILE,
    SINGLE_FILE,
    read_index,
    weights_file,
)
from shoal.export.config.keys import FP8_BLOCK
from shoal.graphs.contract import MAX_DIMENSIONS
from shoal.graphs.errors import CheckpointError
from shoal.graphs.input_files import open_regular
from shoal.graphs.message_parts import shortened
from shoal.graphs.strict_json import strict_json

PICKLE_SUFFIXES = (".bin", ".pt", ".pth")

READABLE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
READABLE |= {FP8_DTYPE: torch.float8_e4m3fn}
"""What can be read, by safetensors name."""

ITEM_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64, "BOOL": 8}
ITEM_BITS |= {f"{kind}{bits}": bits for kind in "IU" for bits in (8, 16, 32, 64)}
ITEM_BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}

MAX_HEADER_BYTES = 100_000_000
_TOO_LARGE = 1 << 63
CHUNK_ITEMS = 1 << 19


class SafetensorsFiles:
    """The tensors of a checkpoint folder whose files have been found whole.

    Attributes:
        path: Of the folder.
        headers: Header of every tensor, by its name in the checkpoint.
        fp8_block: Rows and columns of an FP8 matrix that share a scale.
        readable: Names of the types that can be read.
    """

    readable = tuple(READABLE)

    def __init__(
        self, path: Path, tensors: dict[str, TensorHeader], fp8_block: tuple[int, int]
    ) -> None:
        self.path = path
        self.headers = tensors
        self.fp8_block = fp8_block

    @classmethod
    def open(cls, folder: Path, fp8_block: tuple[int, int] = FP8_BLOCK) -> SafetensorsFiles:
        """Check the files of ``folder`` and list their tensors; reads no weights.

        Args:
            folder: Holds model.safetensors, or model.safetensors.index.json and its shards.
            fp8_block: Rows and columns of an FP8 matrix that share a scale.

        Raises:
            CheckpointError: A file is missing, truncated, damaged, not safetensors or outside the
                folder; all such problems are named in one message.
        """
        folder = Path(folder)
        file = weights_file({path.name for path in folder.iterdir()} if folder.is_dir() else ())
        if file is None:
            raise CheckpointError(_no_weights_message(folder))
        if file == SINGLE_FILE:
            problems: list[str] = []
            tensors = _read_header(folder / SINGLE_FILE, problems)
        else:
            tensors, problems = _read_shards(folder, read_index(folder / INDEX_FILE))
        if problems:
            raise CheckpointError(problems_message(folder, problems, "download these files again"))
        return cls(folder, tensors, fp8_block)

    def read(self, name: str) -> Tensor:
        """Tensor ``name`` as float32, in memory of its own.

        Raises:
            CheckpointError: The file has changed since it was opened, or the tensor holds NaN or
                infinite values.
        """
        shape = self.headers[name].shape
        return self.read_rows(name, 0, shape[0]) if shape else self._read_items(name, 0, 1)[0]

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (exclusive) of the first axis of ``name``; see ``read``."""
        header = self.headers[name]
        row = math.prod(header.shape[1:])
        rows = self._read_items(name, start * row, stop * row)
        rows = rows.reshape(stop - start, *header.shape[1:])
        if header.dtype == FP8_DTYPE:
            # The scales of a stack are read by matrix, those of a matrix by rows of blocks.
            step = self.fp8_block[0] if rows.dim() == 2 else 1
            scales = self.read_rows(scale_name(name), start // step, -(-stop // step))
            apply_scales(rows, scales, self.fp8_block, start=start)
        return rows

    def _read_items(self, name: str, start: int, stop: int) -> Tensor:
        try:
            return self._read_finite(name, start, stop)
        except OSError as exc:
            raise CheckpointError(
                f"{self.headers[name].file}: {name} cannot be read: {exc.strerror}; "
                "check the disk and leave the checkpoint alone during an export"
            ) from exc

    def _read_finite(self, name: str, start: int, stop: int) -> Tensor:
        header = self.headers[name]
        dtype = READABLE[header.dtype]
        # NumPy asks for huge pages, of which a new array has few to be filled with zeros first.
        items = torch.from_numpy(np.empty(stop - start, np.float32))
        # Bounds what is in memory beside the result.
        buffer = torch.empty(min(CHUNK_ITEMS, stop - start), dtype=dtype)
        with header.file.open("rb", buffering=0) as file:
            file.seek(header.offset + start * dtype.itemsize)
            for chunk in torch.split(items, CHUNK_ITEMS):
                raw = buffer[: len(chunk)]
                if not _fill(file.fileno(), raw):
                    raise CheckpointError(
                        f"{header.file}: ended within {name}, it has changed since it was opened; "
                        "leave the checkpoint alone during an export"
                    )
                chunk.copy_(raw)
                # NaN and infinity survive a sum, which costs a tenth of looking at each value.
                if not (chunk.sum().isfinite() or chunk.isfinite().all()):
                    raise CheckpointError(
                        f"{header.file}: {name}: expected finite values, found NaN or infinity; "
                        "download the file again"
                    )
        return items


def _fill(descriptor: int, tensor: Tensor) -> bool:
    """Read bytes into all of ``tensor``; false when the file ends before."""
    left = tensor.view(torch.uint8).numpy().data
    while len(left) > 0:
        count = os.readv(descriptor, [left])
        if count == 0:
            return False
        left = left[count:]
    return True


def _no_weights_message(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: expected a checkpoint folder, found none; check the path"
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        return (
            f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found {', '.join(pickles[:3])}: "
            "shoal reads safetensors only; convert with transformers: "
            "AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
        )
    return f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found neither; download the weights"


def _read_shards(
    folder: Path, shards: dict[str, list[str]]
) -> tuple[dict[str, TensorHeader], list[str]]:
    problems: list[str] = []
    tensors: dict[str, TensorHeader] = {}
    for file, named in shards.items():
        if not (folder / file).exists():
            problems.append(f"{file}: missing shard, which {INDEX_FILE} names")
            continue
        before = len(problems)
        headers = _read_header(folder / file, problems)
        absent = [name for name in named if name not in headers]
        if absent and len(problems) == before:
            lacking = ", ".join(shortened(name) for name in absent[:3])
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            problems.append(f"{file}: lacks {lacking}{more}, which {INDEX_FILE} expects")
        for name in named:
            if name in headers:
                tensors[name] = headers[name]
    return tensors, problems


def _read_header(path: Path, problems: list[str]) -> dict[str, TensorHeader]:
    """Headers of one safetensors file; what is wrong with it is added to ``problems``."""
    try:
        size = path.stat().st_size
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                problems.append(f"{path.name}: truncated or not safetensors ({size} bytes)")
                return {}
            entries = strict_json(file.read(length))
        headers, ends = _parse_entries(path, entries, 8 + length)
    except OSError as exc:
        problems.append(f"{path.name}: cannot be read: {exc.strerror}")
        return {}
    except _DamagedEntry as exc:
        problems.append(f"{path.name}: damaged header: {exc}")
        return {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        problems.append(f"{path.name}: damaged header")
        return {}
    end = max(ends, default=8 + length)
    if end != size:
        word = "truncated" if size < end else "damaged"
        problems.append(f"{path.name}: {word}: expected {end} bytes by its header, found {size}")
    return headers


class _DamagedEntry(Exception):
    """What is wrong with one tensor's entry in a header."""


def _parse_entries(
    path: Path, entries: dict[str, Any], data_start: int
) -> tuple[dict[str, TensorHeader], Iterable[int]]:
    """Tensors and their ends in bytes. Any exception means that the header is damaged."""
    headers: dict[str, TensorHeader] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        if name == "__metadata__":
            if not _is_metadata(entry):
                raise _DamagedEntry("expected texts by name in __metadata__")
            continue
        headers[name], span = _parse_entry(path, name, entry, data_start)
        spans.append((*span, name))
    spans.sort()
    # Tensors lie side by side: an overlap or a gap means that offsets are wrong.
    for (_, end, name), (begin, _, following) in pairwise([(0, 0, "the header"), *spans]):
        if begin < end:
            raise _DamagedEntry(f"{shortened(following)} overlaps {shortened(name)}")
        if begin > end:
            raise _DamagedEntry(
                f"{begin - end} bytes between {shortened(name)} and {shortened(following)} are "
                "unused"
            )
    return headers, [data_start + end for _, end, _ in spans]


def _parse_entry(
    path: Path, name: str, entry: dict[str, Any], data_start: int
) -> tuple[TensorHeader, tuple[int, int]]:
    """One tensor and where its bytes begin and end, from the end of the header on."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        item_bits = ITEM_BITS[dtype]
        # Looked at before anything is computed with it: its length is the file's choice.
        readable = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
        readable = readable and all(map(_is_size, (*shape, begin, end)))
    except (ValueError, TypeError, KeyError):
        readable = False
    if not readable:
        raise _DamagedEntry(f"{shortened(name)} has no readable type, shape and offsets")
    if (end - begin) * 8 != math.prod(shape) * item_bits:
        raise _DamagedEntry(
            f"{shortened(name)}: {dtype} of shape {shape} does not fit offsets [{begin}, {end}]"
        )
    header = TensorHeader(file=path, dtype=dtype, shape=tuple(shape), offset=data_start + begin)
    return header, (begin, end)


def _is_metadata(entry: Any) -> bool:
    if entry is None:
        return True
    return isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values())


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _TOO_LARGE
