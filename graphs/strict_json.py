"""JSON as its standard has it, where two readers of a file must not see two different things."""

from __future__ import annotations

import json
import math
from typing import Any

from shoal.graphs.message_parts import shortened


def strict_json(content: str | bytes) -> Any:
    """The value that JSON stands for, UTF-8 if it is bytes.

    Raises:
        ValueError: not UTF-8, not JSON, a key twice in one object, or NaN, Infinity, numbers
            beyond float64 or half a letter, which Python would take.
        RecursionError: it is too deep.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    value = json.loads(
        text,
        object_pairs_hook=object_without_duplicates,
        parse_constant=_refuse_constant,
        parse_float=_finite,
    )
    if "\\u" in text:  # one of two surrogates has no UTF-8, which is an error here
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for ``object_pairs_hook``.

    Raises:
        ValueError: it has a key twice.
    """
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"key {shortened(key)} twice in one object")
        content[key] = value
    return content


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{shortened(text)}, which is beyond any float64")
    return number


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant}, which is no JSON number")
