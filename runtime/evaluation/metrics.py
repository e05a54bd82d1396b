"""Next-token distributions of a few positions, and how far one is from another.

All in float64: the divergences that matter are a millionth of the logits they come from.

n positions   W vocab_size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

TOP = 5
"""How many of the most likely tokens are compared, besides the top-1 token."""

_SMALLEST = np.finfo(np.float64).tiny  # stands for a probability that is lost to rounding


class Rows(Protocol):
    """Distributions of a reference, whole or as they were stored."""

    @property
    def best_ids(self) -> IntArray:
        """Ids of the most likely tokens, [n, TOP], the top-1 token first."""

    def divergences(self, log_probs_nW: DoubleArray) -> DoubleArray:
        """KL divergence of other distributions from these, in nats, [n]."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How n distributions differ from a reference's."""

    kl: DoubleArray  # [n], KL(reference || this) in nats
    same_top: npt.NDArray[np.bool_]  # [n], whether both have the same top-1 token
    shared_top: DoubleArray  # [n], share of the reference's TOP tokens that are among this one's


def log_softmax(logits: npt.NDArray[np.floating]) -> DoubleArray:
    """Logarithms of probabilities, float64 [n,W], of logits [n,W]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def most_likely(log_probs_nW: DoubleArray) -> IntArray:
    """Ids of the TOP most likely tokens, the top-1 token first, int64 [n, TOP]."""
    count = min(TOP, log_probs_nW.shape[-1])
    ids = np.argpartition(-log_probs_nW, count - 1, axis=-1)[:, :count]
    order = np.argsort(-np.take_along_axis(log_probs_nW, ids, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(ids, order, axis=-1)


class WholeRows:
    """Distributions over the whole vocabulary.

    Attributes:
        log_probs: float64 [n,W].
        best_ids: int64 [n, TOP].
    """

    def __init__(self, log_probs_nW: DoubleArray) -> None:
        self.log_probs = log_probs_nW
        self.best_ids = most_likely(log_probs_nW)

    def divergences(self, log_probs_nW: DoubleArray) -> DoubleArray:
        """KL(this || other) = sum p (ln p - ln q), [n]."""
        kl: DoubleArray = (np.exp(self.log_probs) * (self.log_probs - log_probs_nW)).sum(axis=-1)
        return kl


@dataclass(frozen=True, kw_only=True)
class PartRows:
    """Distributions of which only the most likely tokens are known; the rest is one event.

    Taking many events for one never makes a divergence larger.
    """

    best_ids: IntArray  # [n, TOP]
    rows: IntArray  # [m], row of each known probability
    ids: IntArray  # [m], token of each
    log_probs: DoubleArray  # [m]
    rest: DoubleArray  # [n], probability of all other tokens

    def divergences(self, log_probs_nW: DoubleArray) -> DoubleArray:
        """KL(this || other) with the other's tokens put together in the same way, [n]."""
        count = len(self.rest)
        terms = np.exp(self.log_probs) * (self.log_probs - log_probs_nW[self.rows, self.ids])
        kl = np.bincount(self.rows, terms, minlength=count)
        others = np.exp(log_probs_nW)
        others[self.rows, self.ids] = 0
        other_rest = np.maximum(others.sum(axis=-1), _SMALLEST)
        ratio = np.log(np.maximum(self.rest, _SMALLEST)) - np.log(other_rest)
        return np.asarray(kl + np.where(self.rest > 0, self.rest * ratio, 0), np.float64)


def compare(reference: Rows, log_probs_nW: DoubleArray) -> Comparison:
    """Compare distributions with those of a reference."""
    best = most_likely(log_probs_nW)
    shared = (reference.best_ids[:, :, None] == best[:, None, :]).any(axis=-1)
    return Comparison(
        kl=reference.divergences(log_probs_nW),
        same_top=reference.best_ids[:, 0] == best[:, 0],
        shared_top=shared.mean(axis=-1),
    )


def shared_experts(reference_MTK: IntArray, found_MTK: IntArray) -> DoubleArray:
    """Share of the experts of the reference that were chosen here too, by layer, [M]."""
    shared = (reference_MTK[..., :, None] == found_MTK[..., None, :]).any(axis=-1)
    by_layer: DoubleArray = shared.mean(axis=(1, 2), dtype=np.float64)
    return by_layer
