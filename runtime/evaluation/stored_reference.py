"""Reading stored references; reference_file.py says what is in them.

A file may come from anywhere: its checksum only says that nothing was lost on the way. So every
value is checked before it is used, and sizes follow from the model and the text at hand.

M MoE layers   K num_experts_per_tok   T tokens of a window   m known tokens of a window
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from shoal.graphs.errors import InputError
from shoal.graphs.input_files import open_regular
from shoal.runtime.evaluation.metrics import TOP, DoubleArray, IntArray, PartRows
from shoal.runtime.evaluation.reference_file import (
    LARGEST_REST,
    MAGIC,
    SMALLEST_LOG_PROB,
    STEPS_PER_NAT,
)
from shoal.runtime.evaluation.reference_header import (
    MAX_HEADER_BYTES,
    ReferenceHeader,
    damaged,
    parse_header,
)

_DIGEST_BYTES = 32
_BLOCK_BYTES = 4 << 20
# Log-probabilities are rounded to 1/2048, which moves the sum of all probabilities by up to
# 1 - exp(-1/4096) = 2.5e-4; float32 rounds a probability of 1 up by less than 1e-6.
_SUM_ERROR = 3e-4
_FLOAT_ERROR = 1e-6


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
            with open_regular(path) as file:
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

    def require_sizes(
        self, windows: Sequence[int], vocab_size: int, moe_layers: Sequence[int], top_k: int
    ) -> None:
        """Check what sizes follow from, so that none of them is the file's choice.

        Args:
            windows: tokens of each.
            vocab_size: of the model at hand.
            moe_layers: its layers with experts.
            top_k: experts they choose for a token.

        Raises:
            InputError: the file says otherwise, and was not written for these.
        """
        header = self.header
        found = header.windows, header.vocab_size, header.moe_layers, header.num_experts_per_tok
        if found != (tuple(windows), vocab_size, tuple(moe_layers), top_k):
            raise damaged(self.path)

    def windows(self) -> Iterator[StoredWindow]:
        """What is stored for each window, in order; ``require_sizes`` comes first.

        Raises:
            InputError: a value that no model predicts, or too few or too many bytes.
        """
        with open_regular(self.path) as file:
            file.seek(self._first)
            for length in self.header.windows:
                yield self._window(file, length)
            if len(file.read(_DIGEST_BYTES + 1)) != _DIGEST_BYTES:
                raise damaged(self.path)

    def _window(self, file: IO[bytes], t: int) -> StoredWindow:
        header = self.header
        m, k = len(header.moe_layers), header.num_experts_per_tok
        most = t * (12 + 4 * TOP + 2 * m * k + 6 * header.vocab_size)
        length = int.from_bytes(file.read(4), "little")
        record = file.read(min(length, os.fstat(file.fileno()).st_size))
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(record, most)
            if len(record) != length or not unpacker.eof or unpacker.unused_data:
                raise damaged(self.path)
            return _parse_window(content, t, m, k, header.vocab_size)
        except (zlib.error, ValueError) as error:
            raise damaged(self.path) from error


def _parse_window(content: bytes, t: int, m: int, k: int, vocab_size: int) -> StoredWindow:
    """The arrays of a window.

    Raises:
        ValueError: they are not what a model predicts.
    """
    top = min(TOP, vocab_size)
    fixed = (("<u4", (t,)), ("<f4", (t,)), ("<f4", (t,)), ("<u4", (t, top)), ("<u2", (m, t, k)))
    columns, offset = [], 0
    for dtype, shape in fixed:
        column = np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape)
        offset += column.nbytes
        columns.append(column)
    counts, rest, next_log_probs, best_ids, expert_ids = columns
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    num_known = int(starts[-1])
    if len(content) != offset + 6 * num_known:
        raise ValueError("expected as many known tokens as there are bytes")
    steps = np.frombuffer(content, "<u4", num_known, offset).astype(np.int64)
    codes = np.frombuffer(content, "<u2", num_known, offset + steps.size * 4)
    window = StoredWindow(
        next_log_probs=next_log_probs.astype(np.float64),
        expert_ids=expert_ids.astype(np.int64),
        best_ids=best_ids.astype(np.int64),
        starts=starts,
        ids=_known_ids(steps, starts, counts),
        log_probs=codes / -float(STEPS_PER_NAT),
        rest=rest.astype(np.float64),
    )
    _check_ids(window, vocab_size)
    _share_out(window)
    return window


def _known_ids(steps: IntArray, starts: IntArray, counts: IntArray) -> IntArray:
    """Ids from the differences they are stored as.

    Raises:
        ValueError: a position has none, or they do not rise.
    """
    if not counts.all():
        raise ValueError("expected known tokens at every position")
    is_first = np.zeros(len(steps), bool)
    is_first[starts[:-1]] = True
    if not (steps > 0)[~is_first].all():
        raise ValueError("expected rising ids")
    sums = np.concatenate([[0], np.cumsum(steps)])
    ids: IntArray = sums[1:] - np.repeat(sums[starts[:-1]], counts)
    return ids


def _check_ids(window: StoredWindow, vocab_size: int) -> None:
    if max(window.ids.max(), window.best_ids.max()) >= vocab_size:
        raise ValueError("expected ids of the vocabulary")
    for chosen in (window.best_ids, window.expert_ids):
        if chosen.shape[-1] and not np.diff(np.sort(chosen, axis=-1), axis=-1).all():
            raise ValueError("expected each id once")


def _share_out(window: StoredWindow) -> None:
    """Make the probabilities of each position sum to 1 again, which rounding has prevented.

    Raises:
        ValueError: they are not those of a distribution.
    """
    rest, next_log_probs = window.rest, window.next_log_probs
    # Written so that NaN is refused too.
    if not ((rest >= 0) & (rest <= LARGEST_REST + _FLOAT_ERROR)).all():
        raise ValueError("expected a small probability of all other tokens")
    if not ((next_log_probs <= _FLOAT_ERROR) & (next_log_probs >= SMALLEST_LOG_PROB)).all():
        raise ValueError("expected logarithms of probabilities")
    rows = np.repeat(np.arange(len(rest)), np.diff(window.starts))
    known = np.bincount(rows, np.exp(window.log_probs), minlength=len(rest))
    if not (np.abs(known + rest - 1) <= _SUM_ERROR).all():
        raise ValueError("expected probabilities that sum to 1")
    window.log_probs[:] += (np.log1p(-rest) - np.log(known))[rows]


def _read_header(file: IO[bytes], path: Path) -> tuple[ReferenceHeader, int]:
    start = file.read(16)
    length = int.from_bytes(start[8:], "little")
    if start[:8] != MAGIC or len(start) < 16:
        raise InputError(f"{path}: expected a stored reference, found another kind of file")
    if length > min(MAX_HEADER_BYTES, os.fstat(file.fileno()).st_size - 16 - _DIGEST_BYTES):
        raise damaged(path)
    return parse_header(file.read(length), path), 16 + length


def _check_digest(file: IO[bytes], path: Path) -> None:
    left = file.seek(0, os.SEEK_END) - _DIGEST_BYTES
    file.seek(0)
    digest = hashlib.sha256()
    while left:
        block = file.read(min(left, _BLOCK_BYTES))
        digest.update(block)
        left -= len(block)
    if file.read() != digest.digest():
        raise damaged(path)
