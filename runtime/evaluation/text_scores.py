"""Figures of one model over the windows of a text, gathered window by window."""

from __future__ import annotations

import math

import numpy as np

from shoal.runtime.evaluation.bootstrap import Bootstrap
from shoal.runtime.evaluation.metrics import Comparison, DoubleArray
from shoal.runtime.evaluation.results import Agreement, Estimate
from shoal.runtime.evaluation.windows import Windows


class TextScores:
    """What one model made of the windows read so far: sums, and the divergence of each position."""

    def __init__(self) -> None:
        self._surprise: list[float] = []  # nats, sum over a window
        self._kl: list[DoubleArray] = []
        self._same_top: list[float] = []  # sums over a window
        self._shared_top: list[float] = []
        self._shared_experts: list[DoubleArray] = []  # means over a window, [M]

    def begin_window(self) -> None:
        """Start the next window."""
        self._surprise.append(0.0)
        self._same_top.append(0.0)
        self._shared_top.append(0.0)

    def add(self, next_log_probs: DoubleArray, comparison: Comparison | None) -> None:
        """Take a few positions of the present window.

        Args:
            next_log_probs: log-probabilities of the tokens that follow, where one does.
            comparison: with the reference, if there is one.
        """
        self._surprise[-1] -= float(next_log_probs.sum())
        if comparison is not None:
            self._kl.append(comparison.kl)
            self._same_top[-1] += float(comparison.same_top.sum())
            self._shared_top[-1] += float(comparison.shared_top.sum())

    def add_experts(self, shared_M: DoubleArray) -> None:
        """Take what share of the reference's experts was chosen in the present window."""
        self._shared_experts.append(shared_M)

    def perplexity(self, windows: Windows, bootstrap: Bootstrap) -> Estimate:
        """Exp of the mean surprise of a predicted token."""
        return bootstrap.ratio(np.array(self._surprise), _predicted(windows), np.exp)

    def bits_per_byte(self, windows: Windows, bootstrap: Bootstrap) -> Estimate:
        """Surprise of the predicted text in bits, by its UTF-8 bytes."""
        num_bytes = np.array([float(window.predicted_bytes) for window in windows.windows])
        return bootstrap.ratio(np.array(self._surprise) / math.log(2), num_bytes)

    def agreement(
        self,
        reference: TextScores,
        windows: Windows,
        moe_layers: tuple[int, ...],
        bootstrap: Bootstrap,
    ) -> Agreement:
        """How close the model is to the reference on the same windows."""
        kl = np.concatenate(self._kl)
        lengths = np.array([float(len(window.ids)) for window in windows.windows])
        ends = np.cumsum(lengths).astype(np.int64)
        kl_sums = np.add.reduceat(kl, np.concatenate([[0], ends[:-1]]))
        more_surprise = np.array(self._surprise) - np.array(reference._surprise)
        experts = np.array(self._shared_experts)
        by_layer = lengths @ experts / lengths.sum() if experts.size else ()
        median, p99, p999 = np.quantile(kl, [0.5, 0.99, 0.999])
        return Agreement(
            kl_mean=bootstrap.ratio(kl_sums, lengths),
            kl_median=float(median),
            kl_p99=float(p99),
            kl_p999=float(p999),
            kl_max=float(kl.max()),
            perplexity_ratio=bootstrap.ratio(more_surprise, _predicted(windows), np.exp),
            same_top=bootstrap.ratio(np.array(self._same_top), lengths),
            shared_top=bootstrap.ratio(np.array(self._shared_top), lengths),
            same_experts=(
                bootstrap.ratio(lengths * experts.mean(axis=1), lengths) if experts.size else None
            ),
            same_experts_by_layer=dict(zip(moe_layers, map(float, by_layer), strict=False)),
            kl=kl,
        )


def _predicted(windows: Windows) -> DoubleArray:
    return np.array([float(len(window.ids) - 1) for window in windows.windows])
