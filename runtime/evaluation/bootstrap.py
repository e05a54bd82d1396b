"""Confidence intervals: what a figure might have been on other texts of the same kind.

Windows (or items of a task) are drawn again from those there are, with replacement, and the figure
is computed from each such draw; the interval holds the middle 95 % of the results. Positions of one
window depend on each other, so whole windows are drawn. All figures share the same draws (a paired
bootstrap), so that the interval of a difference between models has only their difference in it.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentiles).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from shoal.runtime.evaluation.results import Estimate

_DRAWS = 1000
_SEED = 1
_ENDS = (0.025, 0.975)

Sums = npt.NDArray[np.float64]


class Bootstrap:
    """Draws of ``count`` windows or items; the same in every run.

    Takes 8 kB for each of them. With a single one there are no intervals.
    """

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(_SEED)
        draws = generator.multinomial(count, np.full(count, 1 / count), size=_DRAWS)
        self._times_drawn = draws.astype(np.float64)
        self._count = count

    def ratio(
        self,
        numerators: Sums,
        denominators: Sums,
        transform: Callable[[Sums], Sums] = lambda values: values,
    ) -> Estimate:
        """Sum of numerators by sum of denominators, with its interval.

        Args:
            numerators: of each window or item, [count].
            denominators: likewise.
            transform: from the ratio to the figure, such as np.exp for a perplexity; monotone.
        """
        value = transform(np.array([numerators.sum() / denominators.sum()]))[0]
        if self._count < 2:
            return Estimate(value=float(value), low=None, high=None)
        drawn = [self._times_drawn @ sums for sums in (numerators, denominators)]
        low, high = np.quantile(transform(drawn[0] / drawn[1]), _ENDS)
        return Estimate(value=float(value), low=float(low), high=float(high))
