"""Token ids from a caller: what is accepted as such, and what is refused."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.graphs.errors import InputError

TokenIds = Iterable[int] | npt.NDArray[np.integer[Any]]


def check_token(token: object, vocab_size: int) -> int:
    """``token`` as an int.

    Raises:
        InputError: it is no integer (booleans and floats are not) or outside 0..vocab_size-1.
    """
    if isinstance(token, (bool, np.bool_)) or not isinstance(token, (int, np.integer)):
        raise InputError(f"token ids must be integers, found {type(token).__name__}")
    number = operator.index(token)
    if not 0 <= number < vocab_size:
        raise InputError(
            f"token id {number} is outside the vocabulary of {vocab_size}; use ids of this model's "
            "tokenizer"
        )
    return number


def check_tokens(ids: TokenIds, vocab_size: int) -> list[int]:
    """``ids`` as a list of ints that is not empty.

    Args:
        ids: any iterable of integers, or a one-dimensional integer array.
        vocab_size: ids are below it.

    Raises:
        InputError: no ids, something that is no integer, or an id outside the vocabulary.
    """
    if isinstance(ids, np.ndarray) and ids.ndim != 1:
        raise InputError(f"token ids must be one-dimensional, found shape {list(ids.shape)}")
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise InputError(
            f"token ids must be a list of integers, found {type(ids).__name__}; encode text first"
        )
    tokens = [check_token(token, vocab_size) for token in ids]
    if not tokens:
        raise InputError("the prompt is empty: expected at least one token id")
    return tokens
