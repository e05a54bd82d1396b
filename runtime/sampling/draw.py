"""The draw: logits to one token by temperature, top-k, top-p and min-p, which apply in that order.

W is vocab_size, n the number of candidates that top-k leaves.

Each applies to what the one before left over. More probable means a larger logit, and of equal
logits the lower id, so a result depends on nothing but its inputs. The vocabulary is not sorted:
top-k selects, top-p sorts only around the last token it keeps, and tokens are drawn in the order of
their ids, in which they have the same probabilities as in any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shoal.graphs.errors import RuntimeFailure
from shoal.runtime.sampling.largest import largest
from shoal.runtime.sampling.options import SamplingOptions

FloatArray = npt.NDArray[np.float64]

_FEW = 256  # candidates that are enough for top-p most of the time
_BINS = 4096
_BINS_PER_LOGIT = 128  # what is 32 and more below the best shares the last bin


def choose_token(
    logits_W: npt.NDArray[np.float32], options: SamplingOptions, random: np.random.Generator
) -> int:
    """Choose one token.

    Args:
        logits_W: float32 [W]; -inf excludes a token.
        options: how to choose.
        random: one number is drawn from it, none at temperature 0.

    Raises:
        RuntimeFailure: the logits hold NaN or +inf, or exclude every token.
    """
    check_logits(logits_W)
    if options.temperature == 0:
        return int(np.argmax(logits_W))
    ids, weights = candidates(logits_W, options)
    bounds = np.cumsum(weights, out=weights)
    # random() is below 1, which leaves this below the last bound even when it is rounded. A token
    # of weight 0 has the bound of the one before it, which is found instead.
    return int(ids[np.searchsorted(bounds, random.random() * bounds[-1], side="right")])


def candidates(
    logits_W: npt.NDArray[np.float32], options: SamplingOptions
) -> tuple[Sequence[int] | npt.NDArray[np.int64], FloatArray]:
    """What ``choose_token`` draws from.

    Args:
        logits_W: float32 [W], as ``check_logits`` wants them.
        options: with a temperature above 0.

    Returns:
        Token ids [n], rising, and weights float64 [n], to which their probabilities are
        proportional; the largest is 1. All other tokens have probability 0.
    """
    ids: Sequence[int] | npt.NDArray[np.int64] = range(len(logits_W))
    if options.top_k:
        ids = largest(logits_W, options.top_k)
        logits_W = logits_W[ids]
    weights = _weights(logits_W, options.temperature)
    if options.top_p < 1:
        wanted = options.top_p * weights.sum()
        few = largest(logits_W, _FEW)
        if weights[few].sum() > wanted:
            ids = ids[few] if isinstance(ids, np.ndarray) else few
            logits_W, weights = logits_W[few], weights[few]
        weights *= _top_p(logits_W, weights, wanted)
    # The best weight is 1, so the fraction of it is the threshold itself.
    weights *= weights >= options.min_p
    return ids, weights


def check_logits(logits_W: npt.NDArray[np.float32]) -> None:
    """Refuse what no sound model gives.

    Raises:
        RuntimeFailure: the logits hold NaN or +inf, or exclude every token.
    """
    best = logits_W.max()  # NaN if any is
    if not np.isfinite(best):
        found = "NaN" if np.isnan(best) else "only -inf" if best < 0 else "+inf"
        raise RuntimeFailure(
            f"logits: expected finite values, found {found}; the weights or the model are damaged, "
            "check with: shoal verify BUNDLE"
        )


def _weights(logits: npt.NDArray[np.float32], temperature: float) -> FloatArray:
    """Probabilities divided by the largest, float64 [n]."""
    scaled = logits.astype(np.float64)
    scaled -= scaled.max()
    with np.errstate(over="ignore", under="ignore"):
        # A tiny temperature makes -inf of all but the best, as it should.
        scaled /= temperature
        return np.exp(scaled, out=scaled)


def _top_p(
    logits: npt.NDArray[np.float32], weights: FloatArray, wanted: float
) -> npt.NDArray[np.bool_]:
    """Which are the fewest most probable that add up to ``wanted``, bool [n]."""
    bins = _bins(logits)
    masses = np.cumsum(np.bincount(bins, weights, minlength=_BINS))
    last = np.searchsorted(masses[:-1], wanted, side="left")  # where the sum is reached
    kept: npt.NDArray[np.bool_] = bins < last
    edge = np.flatnonzero(bins == last)
    edge = edge[np.argsort(-logits[edge], kind="stable")]
    missing = wanted - (masses[last - 1] if last else 0.0)
    kept[edge[: np.searchsorted(np.cumsum(weights[edge]), missing, side="left") + 1]] = True
    return kept


def _bins(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """A coarse order, the most probable first, int64 [n]."""
    with np.errstate(over="ignore"):
        depths = logits.max() - logits
        depths *= _BINS_PER_LOGIT
    bins: npt.NDArray[np.int64] = np.minimum(depths, _BINS - 1, out=depths).astype(np.int64)
    return bins
