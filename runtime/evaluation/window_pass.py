"""All models read the windows of a text in turn, and the reference is compared with the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shoal.runtime.engine.step import FloatArray
from shoal.runtime.evaluation.metrics import (
    DoubleArray,
    IntArray,
    Rows,
    WholeRows,
    compare,
    log_softmax,
    shared_experts,
)
from shoal.runtime.evaluation.reference_file import ReferenceWriter
from shoal.runtime.evaluation.stored_reference import StoredReference, StoredWindow
from shoal.runtime.evaluation.subjects import Subject, row_slices
from shoal.runtime.evaluation.text_scores import TextScores
from shoal.runtime.evaluation.windows import Window, Windows

Reading = tuple[FloatArray, IntArray]
"""Hidden states [T,D] and expert ids [M,T,K] of a window."""


class WindowPass:
    """One pass over a text.

    Args:
        subjects: the models; without a stored reference the first is the reference.
        stored: the reference, if it was stored.
        writer: where to store the first model's predictions.
        progress: called with the number of tokens read and a model's index.

    Attributes:
        scores: Of each model.
        reference_scores: The first model's, or those of the stored reference.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        stored: StoredReference | None,
        writer: ReferenceWriter | None,
        progress: Callable[[int, int], None],
    ) -> None:
        self.scores = [TextScores() for _ in subjects]
        self.reference_scores = self.scores[0] if stored is None else TextScores()
        self._subjects = subjects
        self._stored = stored
        self._writer = writer
        self._progress = progress

    def run(self, windows: Windows) -> None:
        """Read all windows."""
        if self._stored is None:
            for window in windows.windows:
                self._read(window, None)
            return
        for window, stored in zip(windows.windows, self._stored.windows(), strict=True):
            self._read(window, stored)

    def _read(self, window: Window, stored: StoredWindow | None) -> None:
        readings: list[Reading] = []
        for index, subject in enumerate(self._subjects):
            readings.append(subject.read(window.ids.tolist()))
            self._progress(len(window.ids), index)
        experts = readings[0][1] if stored is None else stored.expert_ids
        for scores, (_, found) in zip(self.scores, readings, strict=True):
            scores.begin_window()
            if found.shape == experts.shape and experts.size:
                scores.add_experts(shared_experts(experts, found))
        if stored is not None:
            self.reference_scores.begin_window()
            self.reference_scores.add(stored.next_log_probs[:-1], None)
        for rows in row_slices(len(window.ids), self._subjects[0].vocab_size):
            self._compare(window, rows, readings, None if stored is None else stored.rows(rows))
        if self._writer is not None:
            self._writer.end_window(experts)

    def _compare(
        self, window: Window, rows: slice, readings: Sequence[Reading], reference: Rows | None
    ) -> None:
        next_ids = window.ids[rows.start + 1 : rows.stop + 1]
        for subject, scores, (hidden, _) in zip(self._subjects, self.scores, readings, strict=True):
            log_probs = log_softmax(subject.logits(hidden[rows]))
            next_log_probs = log_probs[np.arange(len(next_ids)), next_ids]
            if reference is not None:
                scores.add(next_log_probs, compare(reference, log_probs))
                continue
            reference = WholeRows(log_probs)
            scores.add(next_log_probs, None)
            if self._writer is not None:
                self._writer.add_rows(reference, _padded(next_log_probs, len(log_probs)))


def _padded(values: DoubleArray, count: int) -> DoubleArray:
    return np.pad(values, (0, count - len(values)))
