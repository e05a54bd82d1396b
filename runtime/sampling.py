"""From logits to a token: pure functions, randomness comes in as a generator.

W is vocab_size, n the number of candidates that are left.

Temperature, top-k, top-p and min-p apply in that order, each to what the one before left over.
Equal logits are ordered by token id everywhere, so a result depends on nothing but its inputs.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.graphs.errors import InputError, RuntimeFailure

_FIRST_GUESS = 256  # candidates top-p sorts before it falls back to sorting the vocabulary


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a token is chosen.

    Raises:
        InputError: a value out of range.
    """

    temperature: float = 0.0  # 0: the most probable token, whatever the other options say
    top_k: int = 0  # keep this many most probable tokens; 0: all
    top_p: float = 1.0  # keep the fewest tokens whose probabilities add up to this; 1: all
    min_p: float = 0.0  # keep tokens at least this fraction as probable as the best one; 0: all

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, math.inf)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(f"top_k must be an integer of at least 0, found {shown(self.top_k)}")
        if self.top_p == 0:
            raise InputError("top_p must be more than 0; use temperature 0 for the best token")


def shown(value: object) -> str:
    """A value for a message, however long or deep it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not write integers of more than 4300 digits
        return "a number of thousands of digits"


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
    if options.temperature == 0:
        _check_logits(logits_W)
        return int(np.argmax(logits_W))
    ids, probabilities = candidates(logits_W, options)
    bounds = np.cumsum(probabilities)
    # Scaled by the last bound: rounding may leave it short of 1.
    index = int(np.searchsorted(bounds, random.random() * bounds[-1], side="right"))
    return int(ids[min(index, len(ids) - 1)])


def candidates(
    logits_W: npt.NDArray[np.float32], options: SamplingOptions
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The distribution that ``choose_token`` draws from.

    Args:
        logits_W: float32 [W].
        options: with a temperature above 0.

    Returns:
        Token ids int64 [n], most probable first, and their probabilities float64 [n], which add up
        to 1; every other token has probability 0.

    Raises:
        RuntimeFailure: see ``choose_token``.
    """
    _check_logits(logits_W)
    weights_W = _relative_probabilities(logits_W, options.temperature)
    possible = int(np.count_nonzero(weights_W))
    count = min(options.top_k, possible) if options.top_k else possible
    total = None
    if options.top_p < 1:
        total = float(weights_W.sum()) if count == possible else None
        if total is not None:
            count = _guess_top_p(weights_W, options.top_p * total, count)
    ids = _largest(weights_W, count)
    weights = weights_W[ids]
    if options.top_p < 1:
        mass = np.cumsum(weights)
        wanted = options.top_p * (mass[-1] if total is None else total)
        kept = int(np.searchsorted(mass, wanted, side="left")) + 1
        ids, weights = ids[:kept], weights[:kept]
    # The best weight is 1, so the fraction of it is the threshold itself.
    weights = weights[weights >= options.min_p]
    return ids[: len(weights)], weights / weights.sum()


def _relative_probabilities(
    logits_W: npt.NDArray[np.float32], temperature: float
) -> npt.NDArray[np.float64]:
    """Probabilities divided by the largest, float64 [W]."""
    shifted = logits_W.astype(np.float64)
    shifted -= shifted.max()
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        # A tiny temperature makes -inf of all but the best, as it should.
        weights: npt.NDArray[np.float64] = np.exp(shifted / temperature)
    return weights


def _guess_top_p(weights_W: npt.NDArray[np.float64], wanted: float, count: int) -> int:
    """A number of largest weights that is enough for top-p: few if they do, else all."""
    if count <= _FIRST_GUESS:
        return count
    largest = np.partition(weights_W, -_FIRST_GUESS)[-_FIRST_GUESS:]
    # A margin, because these are added in another order than the sorted ones will be.
    return _FIRST_GUESS if largest.sum() > wanted * (1 + 1e-9) else count


def _largest(weights_W: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Ids of the ``count`` largest weights, falling, equal ones by rising id."""
    if count < len(weights_W):
        threshold = np.partition(weights_W, -count)[-count]
        above = np.flatnonzero(weights_W > threshold)
        equal = np.flatnonzero(weights_W == threshold)[: count - len(above)]
        ids = np.sort(np.concatenate([above, equal]))
    else:
        ids = np.arange(len(weights_W))
    order = np.argsort(-weights_W[ids], kind="stable")
    sorted_ids: npt.NDArray[np.int64] = ids[order]
    return sorted_ids


def _check_logits(logits_W: npt.NDArray[np.float32]) -> None:
    best = logits_W.max()  # NaN if any is
    if not np.isfinite(best):
        found = "NaN" if np.isnan(best) else "only -inf" if best < 0 else "+inf"
        raise RuntimeFailure(
            f"logits: expected finite values, found {found}; the weights or the model are damaged, "
            "check with: shoal verify BUNDLE"
        )


def _check_number(name: str, value: object, low: float, high: float) -> None:
    number = math.nan if isinstance(value, bool) else _float(value)
    if not low <= number <= high or math.isinf(number):
        limits = f"of at least {low:g}" if math.isinf(high) else f"in {low:g}..{high:g}"
        raise InputError(f"{name} must be a number {limits}, found {shown(value)}")


def _float(value: object) -> float:
    if not isinstance(value, (int, float, np.integer, np.floating)):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an integer of any size
        return math.inf if value > 0 else -math.inf
