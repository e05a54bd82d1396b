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


def take_arrays(arrays: dict[str, npt.NDArray[Any]], *names: str) -> Arrays:
    """Take those of these names out of ``arrays`` that are there."""
    return {name: arrays.pop(name) for name in names if name in arrays}


def require_arrays(arrays: Arrays, forms: Mapping[str, Form]) -> None:
    """Check that there are exactly these arrays.

    Raises:
        UnexpectedArrays: there are not.
    """
    found = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
    if found != forms:
        wrong = sorted({name for name, _ in found.items() ^ forms.items()})
        raise UnexpectedArrays(", ".join(wrong))


def require_below(array: npt.NDArray[Any], limits: int | tuple[int, ...]) -> None:
    """Check that all values are in 0..limit-1; each column may have a limit of its own.

    Raises:
        UnexpectedArrays: they are not.
    """
    if not ((array >= 0) & (array < limits)).all():
        raise UnexpectedArrays(f"values outside 0..{limits}")
