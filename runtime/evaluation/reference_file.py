"""Files that hold what a reference model predicted for a text, so that it need not run again.

    8 bytes    b"shoalref"
    8 bytes    length of the header, little-endian
    header     JSON: format_version, model (sha256 of its config.json, name, weights), tokenizer
               (sha256), text (sha256 of the token ids, names), vocab_size, moe_layers,
               num_experts_per_tok, windows (tokens of each), continuations (greedy tokens after the
               first windows' beginnings)
    windows    for each 4 bytes of length and a zlib stream of these arrays, little-endian:
               uint32 [T] counts of known tokens, float32 [T] probability of all others, float32 [T]
               log-probability of the token that follows (0 for the last, never below -700), uint32
               [T,5] ids of the top five, uint16 [M,T,K] expert ids, uint32 [m] ids of known tokens
               by position, rising, each less the one before, uint16 [m] their log-probabilities
               times -2048
    32 bytes   sha256 of everything before

Known tokens are the most likely ones that have at least 99.9 % of the probability, whatever their
number. The error: the rest counts as one event, which leaves out the part of a divergence that lies
within that 0.1 % and so makes it smaller, never larger; rounding log-probabilities to 1/2048 adds
about 1e-8 nats. On tiny-v3 the mean divergence of int8 is 0.1 % smaller than without.

M MoE layers   K num_experts_per_tok   T tokens of a window   m known tokens of a window
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from shoal.runtime.atomic_file import atomic_file
from shoal.runtime.evaluation.metrics import DoubleArray, IntArray, WholeRows
from shoal.runtime.evaluation.reference_header import ReferenceHeader

LARGEST_REST = 1e-3
"""Probability that may be left out of a distribution."""

SMALLEST_LOG_PROB = -700.0
"""Of a token that follows; smaller ones are lost to rounding, and exp of their sum overflows."""

MAGIC = b"shoalref"
STEPS_PER_NAT = 2048
_BINS_PER_NAT = 8
_NUM_BINS = 256  # the last holds everything below e^-32, far less than LARGEST_REST


class ReferenceWriter:
    """Takes the distributions of a reference, a few rows at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._parts: list[tuple[npt.NDArray[Any], ...]] = []

    def write(self, content: bytes) -> None:
        """Add bytes to the file and to its checksum."""
        self._digest.update(content)
        self._file.write(content)

    def add_rows(self, rows: WholeRows, next_log_probs: DoubleArray) -> None:
        """Take n positions of the present window.

        Args:
            rows: their distributions.
            next_log_probs: of the tokens that follow, [n].
        """
        counts, ids, log_probs, rest = likely_part(rows.log_probs)
        codes = np.rint(-log_probs * STEPS_PER_NAT).astype("<u2")
        steps = np.diff(ids, prepend=0)
        starts = np.cumsum(counts)[:-1]
        steps[starts] = ids[starts]
        self._parts.append(
            (
                counts.astype("<u4"),
                rest.astype("<f4"),
                np.maximum(next_log_probs, SMALLEST_LOG_PROB).astype("<f4"),
                rows.best_ids.astype("<u4"),
                steps.astype("<u4"),
                codes,
            )
        )

    def end_window(self, expert_ids_MTK: IntArray) -> None:
        """Write the window whose rows were taken."""
        columns = [np.concatenate(part) for part in zip(*self._parts, strict=True)]
        columns.insert(4, expert_ids_MTK.astype("<u2"))
        self._parts.clear()
        record = zlib.compress(b"".join(column.tobytes() for column in columns))
        self.write(len(record).to_bytes(4, "little") + record)

    def finish(self) -> None:
        """Write the checksum."""
        self._file.write(self._digest.digest())


@contextmanager
def writing_reference(path: Path, header: ReferenceHeader) -> Iterator[ReferenceWriter]:
    """Write a file that appears when the block is left without an error.

    Raises:
        RuntimeFailure: the disk is full or refuses.
    """
    with atomic_file(path, "the reference") as file:
        writer = ReferenceWriter(file)
        content = header.to_json()
        writer.write(MAGIC + len(content).to_bytes(8, "little") + content)
        yield writer
        writer.finish()


def likely_part(
    log_probs_nW: DoubleArray,
) -> tuple[IntArray, IntArray, DoubleArray, DoubleArray]:
    """The most likely tokens of each row that leave out no more than LARGEST_REST.

    Returns:
        How many each row has [n]; their ids, rising within a row, and log-probabilities [m]; the
        probability of the others [n].
    """
    count = len(log_probs_nW)
    probs = np.exp(log_probs_nW)
    bins = np.minimum(-log_probs_nW * _BINS_PER_NAT, _NUM_BINS - 1).astype(np.int64)
    flat = (bins + _NUM_BINS * np.arange(count)[:, None]).ravel()
    mass = np.bincount(flat, probs.ravel(), minlength=count * _NUM_BINS).reshape(count, _NUM_BINS)
    until_end = np.cumsum(mass[:, ::-1], axis=1)[:, ::-1]  # of a bin and all less likely ones
    num_kept = (until_end > LARGEST_REST).sum(axis=1)
    known = bins < num_kept[:, None]
    rows, ids = np.nonzero(known)
    rest: DoubleArray = np.where(known, 0, probs).sum(axis=1)
    return known.sum(axis=1), ids, log_probs_nW[rows, ids], rest
