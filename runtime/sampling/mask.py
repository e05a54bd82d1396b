"""Allowed tokens: which may come next at all. W is vocab_size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from shoal.graphs.errors import InputError

Mask = npt.NDArray[np.bool_]
"""True for each token that is allowed, bool [W]."""

Allowed = Mask | Callable[[Sequence[int]], Mask]
"""The same mask for each token, or what gives one for the tokens of the answer so far."""


def check_mask(mask: object, vocab_size: int) -> Mask:
    """``mask`` if it is one.

    Raises:
        InputError: it is no array of booleans, one for each token of the vocabulary.
    """
    if not isinstance(mask, np.ndarray):
        raise InputError(
            f"allowed must be a bool array of {vocab_size} tokens or a function that returns one, "
            f"found {type(mask).__name__}"
        )
    if mask.dtype != np.bool_ or mask.shape != (vocab_size,):
        raise InputError(
            f"allowed must be bool of shape [{vocab_size}], found {mask.dtype} of shape "
            f"{list(mask.shape)[:4]}"
        )
    return mask


def apply_mask(logits_W: npt.NDArray[np.float32], mask_W: Mask) -> None:
    """Exclude tokens that are not allowed, in place.

    Raises:
        InputError: nothing is left of what the model takes for possible.
    """
    np.copyto(logits_W, -np.inf, where=~mask_W)
    if logits_W.max() == -np.inf:
        raise InputError(
            "allowed: no token that the model takes for possible is allowed; allow one, such as a "
            "stop token"
        )
