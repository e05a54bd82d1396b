"""Arrays by name: what state is saved as, and whether it is what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]

Form = tuple[str, tuple[int, ...]]
"""Dtype and shape of an array."""


class UnexpectedArrays(Exception):
    """Arrays are not those that were saved; whoever knows where they come from says so."""


def row_count(arrays: Arrays, name: str) -> int:
    """Rows of an array, 0 if there is none of this name."""
    array = arrays.get(name, np.empty(0))
    return len(array) if array.ndim else 0


def take_arrays(arrays: dict[str, npt.NDArray[Any]], forms: Mapping[str, Form]) -> Arrays:
    """Take these arrays out of ``arrays``.

    Raises:
        UnexpectedArrays: one is missing or has another form.
    """
    taken = {name: arrays.pop(name) for name in forms if name in arrays}
    require_arrays(taken, forms)
    return taken


def require_arrays(arrays: Arrays, forms: Mapping[str, Form]) -> None:
    """Check that there are exactly these arrays.

    Raises:
        UnexpectedArrays: there are not.
    """
    found = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
    if found != forms:
        wrong = sorted({name for name, _ in found.items() ^ forms.items()})
        raise UnexpectedArrays(", ".join(wrong))


def is_below(array: npt.NDArray[Any], limits: int | tuple[int, ...]) -> bool:
    """Whether all values are in 0..limit-1; each column may have a limit of its own."""
    return bool(((array >= 0) & (array < limits)).all())
