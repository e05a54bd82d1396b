"""Penalties for what was said before, on logits, in place. W is vocab_size.

Source: Keskar et al., CTRL (arXiv 1909.05858), section 4.1, for the repetition penalty; the other
two are those of OpenAI's interface.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def penalise_repetition(
    logits_W: npt.NDArray[np.float32], seen_W: npt.NDArray[np.bool_], penalty: float
) -> None:
    """Make tokens that were read or written less probable, by a factor.

    Args:
        logits_W: float32 [W]; the positive ones are divided, the negative ones multiplied.
        seen_W: which tokens are in the prompt or the answer, bool [W].
        penalty: above 1 for less probable, below for more.
    """
    ids = np.flatnonzero(seen_W)
    logits = logits_W[ids]
    with np.errstate(over="ignore"):  # of logits that no sound model gives
        logits_W[ids] = np.where(logits < 0, logits * penalty, logits / penalty)


def penalise_occurrence(
    logits_W: npt.NDArray[np.float32],
    counts_W: npt.NDArray[np.float32],
    *,
    frequency: float,
    presence: float,
) -> None:
    """Make tokens that were written less probable.

    Args:
        logits_W: float32 [W].
        counts_W: how often each token is in the answer, float32 [W].
        frequency: subtracted for each time.
        presence: subtracted once.
    """
    ids = np.flatnonzero(counts_W > 0)  # of booleans it is ten times as fast
    logits_W[ids] -= frequency * counts_W[ids] + presence
