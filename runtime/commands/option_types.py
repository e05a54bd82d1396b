"""What option values may be: each function turns a text into a value or says what it expected."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import Literal

from shoal.graphs.ops.spec import LONGEST_SHORT_STEP


def _number(
    text: str, kind: Callable[[str], float], allowed: str, low: float, high: float
) -> float:
    try:
        value = kind(text) if text.isascii() else math.nan  # no digits of other scripts
    except ValueError:
        value = math.nan
    if not (low <= value <= high and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"expected {allowed}, found {text!r}")
    return value


def positive_int(text: str) -> int:
    """Option type: a whole number of at least 1."""
    return int(_number(text, int, "a whole number of at least 1", 1, 2**31 - 1))


def non_negative_int(text: str) -> int:
    """Option type: a whole number of at least 0."""
    return int(_number(text, int, "a whole number of at least 0", 0, 2**63 - 1))


def draft_length(text: str) -> int | Literal["auto"]:
    """Option type: auto or a whole number from 0 to the longest draft."""
    if text == "auto":
        return "auto"
    longest = LONGEST_SHORT_STEP - 1
    return int(_number(text, int, f"auto or a whole number from 0 to {longest}", 0, longest))


def non_negative_float(text: str) -> float:
    """Option type: a finite number of at least 0."""
    return _number(text, float, "a number of at least 0", 0.0, math.inf)


def probability(text: str) -> float:
    """Option type: a number above 0 and at most 1."""
    return _number(text, float, "a number above 0 and at most 1", math.ulp(0.0), 1.0)


def probability_or_zero(text: str) -> float:
    """Option type: a number from 0 to 1."""
    return _number(text, float, "a number from 0 to 1", 0.0, 1.0)


def penalty(text: str) -> float:
    """Option type: a number from -2 to 2."""
    return _number(text, float, "a number from -2 to 2", -2.0, 2.0)


def repetition_penalty(text: str) -> float:
    """Option type: a number from 0.01 to 100."""
    return _number(text, float, "a number from 0.01 to 100", 0.01, 100.0)


def token_bias(text: str) -> tuple[int, float]:
    """Option type: a token id and a number from -100 to 100, with = between them."""
    id_, _, number = text.partition("=")
    allowed = "ID=X such as 42=-1.5 with X from -100 to 100"
    return (
        int(_number(id_, int, allowed, 0, 2**31 - 1)),
        _number(number, float, allowed, -100.0, 100.0),
    )


def logprob_count(text: str) -> int:
    """Option type: a whole number from 0 to 20."""
    return int(_number(text, int, "a whole number from 0 to 20", 0, 20))


def utf8_text(text: str) -> str:
    """Option type: text, which the shell has handed over in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("expected UTF-8 text, found other bytes") from error
    return text


def access_token(text: str) -> str:
    """Option type: printable ASCII; what it is instead is not repeated, as it is a secret."""
    if not (text.isascii() and text.isprintable()):
        raise argparse.ArgumentTypeError("expected printable ASCII, found other characters")
    return text


def length_list(text: str) -> tuple[int, ...]:
    """Option type: whole numbers of at least 0, separated by commas; duplicates are dropped."""
    return tuple(sorted({non_negative_int(part) for part in text.split(",")}))


def positive_length_list(text: str) -> tuple[int, ...]:
    """Option type: whole numbers of at least 1, separated by commas; duplicates are dropped."""
    return tuple(sorted({positive_int(part) for part in text.split(",")}))


_BYTE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BYTE_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def byte_count(text: str) -> int:
    """Option type: a number of bytes, at least 1, with or without a unit such as MB, G or GiB."""
    found = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]*)?)\s*([kmgt]?i?)b?", text.strip().lower())
    count = int(float(found[1]) * _BYTE_UNITS.get(found[2], 0)) if found else 0
    if count < 1:
        raise argparse.ArgumentTypeError(
            f"expected a number of bytes such as 800M, 1.5G or 2GiB, found {text!r}"
        )
    return count
