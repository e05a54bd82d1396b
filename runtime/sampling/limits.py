"""Numbers that users give: what is refused, and how it is shown."""

from __future__ import annotations

import math
import reprlib

import numpy as np

from shoal.graphs.errors import InputError


def check_number(name: str, value: object, low: float, high: float) -> float:
    """``value`` as a float.

    Raises:
        InputError: it is no number, or not between the two.
    """
    number = math.nan if isinstance(value, bool) else _float(value)
    if not low <= number <= high or math.isinf(number):
        limits = f"of at least {low:g}" if math.isinf(high) else f"in {low:g}..{high:g}"
        raise InputError(f"{name} must be a number {limits}, found {shown(value)}")
    return number


def check_count(name: str, value: object, *, optional: bool = False) -> None:
    """Refuse what is no integer of at least 0, nor None where that is optional.

    Raises:
        InputError: it is neither.
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        kind = "an integer of at least 0" + (" or None" if optional else "")
        raise InputError(f"{name} must be {kind}, found {shown(value)}")


def shown(value: object) -> str:
    """A value for a message, however long or deep it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not write integers of more than 4300 digits
        return "a number of thousands of digits"


def _float(value: object) -> float:
    if not isinstance(value, (int, float, np.integer, np.floating)):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an integer of any size
        return math.inf if value > 0 else -math.inf
