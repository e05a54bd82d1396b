"""Log-probabilities of a chosen token and of the most probable ones, as the model has them.

W is vocab_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.runtime.sampling.largest import largest

_PART = 8192  # logits


@dataclass(frozen=True, kw_only=True)
class TokenLogProbs:
    """How probable the model took a token of an answer for, before any option of sampling.

    Attributes:
        token: Id of the token.
        logprob: Natural logarithm of its probability.
        top: Id and logarithm for the most probable tokens, the most probable first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def log_probs(logits_W: npt.NDArray[np.float32], token: int, count: int) -> TokenLogProbs:
    """Log-probabilities under raw logits.

    Args:
        logits_W: float32 [W], with a finite one for ``token``.
        token: the token that was chosen.
        count: how many of the most probable tokens are wanted; impossible ones are left out.
    """
    total = _log_sum_exp(logits_W)
    ids = largest(logits_W, count) if count else np.arange(0)
    ids = ids[np.argsort(-logits_W[ids], kind="stable")]
    found = logits_W[ids].astype(np.float64) - total
    top = tuple((i, x) for i, x in zip(ids.tolist(), found.tolist(), strict=True) if x > -np.inf)
    return TokenLogProbs(token=token, logprob=float(logits_W[token]) - total, top=top)


def _log_sum_exp(logits_W: npt.NDArray[np.float32]) -> float:
    """Logarithm of the sum of exponentials, in parts: fresh memory of 1 MB takes as long again."""
    best = float(logits_W.max())
    parts = (
        logits_W[start : start + _PART].astype(np.float64) - best
        for start in range(0, len(logits_W), _PART)
    )
    return best + math.log(sum(float(np.exp(part, out=part).sum()) for part in parts))
