"""Logit bias: numbers added to the logits of some tokens. W is vocab_size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from shoal.graphs.errors import InputError
from shoal.runtime.sampling.limits import check_number, shown

LogitBias = Mapping[int, float] | Mapping[str, float]
"""Numbers by token id; ids may be decimal texts, which is what JSON has."""

MOST_BIAS = 100.0
"""What can be added or subtracted; as much all but decides."""

_LONGEST_ID = 10  # digits


def read_bias(bias: object) -> dict[int, float]:
    """A logit bias by integer ids.

    Raises:
        InputError: it is none, or one of its ids or numbers.
    """
    if not isinstance(bias, Mapping):
        raise InputError(
            f"logit_bias must be numbers by token id, as {{42: -1.5}}, found {shown(bias)}"
        )
    found: dict[int, float] = {}
    for key, value in bias.items():
        token = _token(key)
        if token in found:
            raise InputError(f"logit_bias has token id {token} twice; give it once")
        found[token] = check_number(f"logit_bias of token {token}", value, -MOST_BIAS, MOST_BIAS)
    return found


def add_bias(logits_W: npt.NDArray[np.float32], bias: Mapping[int, float]) -> None:
    """Add a bias to logits, in place."""
    ids = np.fromiter(bias, np.int64, len(bias))
    logits_W[ids] += np.fromiter(bias.values(), np.float32, len(bias))


def check_ids(bias: Mapping[int, float], vocab_size: int) -> None:
    """Refuse tokens that the model does not have.

    Raises:
        InputError: an id is outside the vocabulary.
    """
    largest = max(bias, default=0)
    if largest >= vocab_size:
        raise InputError(
            f"logit_bias: token id {largest} is outside the vocabulary of {vocab_size}; use ids of "
            "this model's tokenizer"
        )


def _token(key: object) -> int:
    if isinstance(key, str) and len(key) <= _LONGEST_ID and key.isascii() and key.isdigit():
        number = int(key)
        if str(number) == key:
            return number
    elif isinstance(key, (int, np.integer)) and not isinstance(key, bool) and key >= 0:
        return int(key)
    raise InputError(f"logit_bias must have token ids as keys, found {shown(key)}")
