"""The largest of many values, without sorting them.

W is the number of values, n how many of them are wanted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_PART = 64  # values; a vocabulary of 129,280 has 2,020 such parts


def largest(values_W: npt.NDArray[np.floating[Any]], count: int) -> npt.NDArray[np.int64]:
    """Indices of the ``count`` largest values, rising; of equal values the first ones.

    Args:
        values_W: [W], no NaN.
        count: at least 1; W or more gives all.

    Returns:
        int64 [n].
    """
    if count >= len(values_W):
        return np.arange(len(values_W))
    indices = np.flatnonzero(values_W >= _reached_by(values_W, count))
    values = values_W[indices]
    threshold = np.partition(values, -count)[-count]
    chosen = values > threshold
    ties = np.flatnonzero(values == threshold)
    chosen[ties[: count - np.count_nonzero(chosen)]] = True
    found: npt.NDArray[np.int64] = indices[chosen]
    return found


def _reached_by(values_W: npt.NDArray[np.floating[Any]], count: int) -> float:
    """A bound that at least ``count`` values reach, and seldom many more.

    Where ``count`` parts have a largest value of at least this, as many values have.
    """
    parts = len(values_W) // _PART
    if parts < count:
        return -np.inf
    best = values_W[: parts * _PART].reshape(_PART, parts).max(axis=0)
    # A partition takes ten times as long as sorting does where a mask excludes every eighth.
    return float(np.sort(best)[-count])
