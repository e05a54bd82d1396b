"""Reading stored references; reference_file.py says what is in them.

A file comes from anywhere, so its checksum and sizes are checked before it is believed.

M MoE layers   K num_experts_per_tok   T tokens of a window   m known tokens of a window
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from shoal.graphs.errors import InputError
from shoal.runtime.evaluation.metrics import TOP, DoubleArray, IntArray, PartRows
from shoal.runtime.evaluation.reference_file import (
    FORMAT_VERSION,
    MAGIC,
    STEPS_PER_NAT,
    ReferenceHeader,
)

_DIGEST_BYTES = 32
_MAX_HEADER_BYTES = 64 << 20
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class StoredWindow:
    """What a reference predicted for one window."""

    next_log_probs: DoubleArray  # [T]
    expert_ids: IntArray  # [M,T,K]
    best_ids: IntArray  # [T, TOP]
    starts: IntArray  # [T+1], where each position's known tokens begin
    ids: IntArray  # [m]
    log_probs: DoubleArray  # [m]
    rest: DoubleArray  # [T]

    def rows(self, positions: slice) -> PartRows:
        """The distributions of some positions."""
        starts = self.starts[positions.start : positions.stop + 1]
        known = slice(starts[0], starts[-1])
        return PartRows(
            best_ids=self.best_ids[positions],
            rows=np.repeat(np.arange(len(starts) - 1), np.diff(starts)),
            ids=self.ids[known],
            log_probs=self.log_probs[known],
            rest=self.rest[positions],
        )


class StoredReference:
    """A file that ``writing_reference`` wrote, checked to its last byte.

    Attributes:
        header: What it belongs to.

    Raises:
        InputError: no such file, no reference, a newer format, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.header, self._first = _read_header(file, path)
                _check_digest(file, path)
        except OSError as error:
            raise InputError(
                f"{path}: the reference cannot be read ({error.strerror or error}); check the path"
            ) from error

    def require(self, expected: Mapping[str, tuple[str, str]]) -> None:
        """Check what the reference belongs to.

        Args:
            expected: by what it is ("text", "tokenizer", "model"): its sha256 and what to do when
                another one is found.

        Raises:
            InputError: it belongs to something else.
        """
        header = self.header
        found = {
            "tokenizer": header.tokenizer,
            "model": header.model["sha256"],
            "text": header.text["sha256"],
        }
        for kind, (digest, advice) in expected.items():
            if found[kind] != digest:
                raise InputError(
                    f"{self.path}: expected a reference for this {kind} ({digest[:12]}), found one "
                    f"for another ({str(found[kind])[:12]}); {advice}"
                )

    def windows(self) -> Iterator[StoredWindow]:
        """What is stored for each window, in order."""
        with self.path.open("rb") as file:
            file.seek(self._first)
            for length in self.header.windows:
                yield self._window(file, length)

    def _window(self, file: IO[bytes], t: int) -> StoredWindow:
        header = self.header
        m, k = len(header.moe_layers), header.num_experts_per_tok
        most = t * (12 + 4 * TOP + 2 * m * k + 6 * header.vocab_size)
        record = file.read(int.from_bytes(file.read(4), "little"))
        try:
            content = zlib.decompressobj().decompress(record, most)
            return _parse_window(content, t, m, k, header.vocab_size)
        except (zlib.error, ValueError, IndexError) as error:
            raise _damaged(self.path) from error


def _parse_window(content: bytes, t: int, m: int, k: int, vocab_size: int) -> StoredWindow:
    top = min(TOP, vocab_size)
    fixed = (("<u4", (t,)), ("<f4", (t,)), ("<f4", (t,)), ("<u4", (t, top)), ("<u2", (m, t, k)))
    columns, offset = [], 0
    for dtype, shape in fixed:
        column = np.frombuffer(content, dtype, int(np.prod(shape)), offset).reshape(shape)
        offset += column.nbytes
        columns.append(column)
    counts, rest, next_log_probs, best_ids, expert_ids = columns
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    steps = np.frombuffer(content, "<u4", int(starts[-1]), offset).astype(np.int64)
    codes = np.frombuffer(content, "<u2", int(starts[-1]), offset + steps.size * 4)
    sums = np.concatenate([[0], np.cumsum(steps)])
    ids = sums[1:] - np.repeat(sums[starts[:-1]], counts)
    if not counts.all() or ids.max() >= vocab_size or ids.min() < 0:
        raise ValueError("expected ids of the vocabulary at every position")
    log_probs = codes / -float(STEPS_PER_NAT)
    # Rounding moves the sum of all by up to 1e-4 from 1.
    rows = np.repeat(np.arange(t), counts)
    known = np.bincount(rows, np.exp(log_probs), minlength=t)
    log_probs += (np.log1p(-rest.astype(np.float64)) - np.log(known))[rows]
    return StoredWindow(
        next_log_probs=next_log_probs.astype(np.float64),
        expert_ids=expert_ids.astype(np.int64),
        best_ids=best_ids.astype(np.int64),
        starts=starts,
        ids=ids,
        log_probs=log_probs,
        rest=rest.astype(np.float64),
    )


def _read_header(file: IO[bytes], path: Path) -> tuple[ReferenceHeader, int]:
    start = file.read(16)
    length = int.from_bytes(start[8:], "little")
    if start[:8] != MAGIC or len(start) < 16:
        raise InputError(f"{path}: expected a stored reference, found another kind of file")
    if length > min(_MAX_HEADER_BYTES, os.fstat(file.fileno()).st_size - 16 - _DIGEST_BYTES):
        raise _damaged(path)
    try:
        content = json.loads(file.read(length))
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path}: expected a reference of format {FORMAT_VERSION}, found "
                f"{str(version)[:20]}; store it again"
            )
        tuples = {key: tuple(content[key]) for key in ("moe_layers", "windows", "continuations")}
        return ReferenceHeader(**(content | tuples)), 16 + length
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path) from error


def _check_digest(file: IO[bytes], path: Path) -> None:
    left = file.seek(0, os.SEEK_END) - _DIGEST_BYTES
    file.seek(0)
    digest = hashlib.sha256()
    while left:
        block = file.read(min(left, _BLOCK_BYTES))
        digest.update(block)
        left -= len(block)
    if file.read() != digest.digest():
        raise _damaged(path)


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: the reference is damaged or incomplete; store it again")
