"""Damage for JSON: values of other types and sizes, and texts that only look like JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzz.mutations import (
    FLOATS,
    INTEGERS,
    TEXTS,
    change_bytes,
    change_integer,
    change_text,
    number_of_changes,
)

_RAW = "\ue000{}\ue001"  # stands for what json.dumps would not write
_RAW_PATTERN = re.compile(r'"\\ue000(.*?)\\ue001"')
_TOKENS = (
    *("1" + "0" * 400, "-1" + "0" * 400, "1" * 5000, "1e400", "-1e400", "1e-400", "-0", "1E5"),
    *("NaN", "Infinity", "-Infinity", "01", "0x10", "1.", "'a'", "tru", '"a', "{}", "[]"),
    *("[" * 100 + "]" * 100, "[" * 50_000 + "]" * 50_000, '{"a":' * 3000 + "1" + "}" * 3000),
    *("[" + "1," * 2000 + "1]", "[" + "1," * 70_000 + "1]"),
)
_DEEPEST_STEP = 0.75


def change_json(rng: Random, value: Any) -> Any:
    """A copy with one to four changes somewhere in it; see ``json_bytes`` for how it is written."""
    for _ in range(number_of_changes(rng)):
        value = _changed_within(rng, value)
    return value


def json_bytes(value: Any) -> bytes:
    """JSON text of a value that ``change_json`` made."""
    text = json.dumps(value, ensure_ascii=True)
    return _RAW_PATTERN.sub(_unescaped, text).encode()


def _unescaped(match: re.Match[str]) -> str:
    try:
        return str(json.loads(f'"{match[1]}"'))
    except ValueError:  # another change has cut the token
        return match[0]


def change_json_text(rng: Random, text: bytes) -> bytes:
    """The text with something wrong about it as text, now and then."""
    return rng.choice(_TEXT_CHANGES)(rng, text) if rng.random() < 0.1 else text


def _changed_within(rng: Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < _DEEPEST_STEP:
        key = rng.choice(list(value))
        return {**value, key: _changed_within(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < _DEEPEST_STEP:
        place = rng.randrange(len(value))
        return [*value[:place], _changed_within(rng, value[place]), *value[place + 1 :]]
    return _changed(rng, value)


def _changed(rng: Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.8:
        return _changed_object(rng, value)
    if isinstance(value, list) and value and rng.random() < 0.8:
        return _changed_list(rng, value)
    if rng.random() < 0.5:
        if isinstance(value, str):
            return change_text(rng, value)
        if isinstance(value, int) and not isinstance(value, bool):
            return change_integer(rng, value)
    return _anything(rng, value)


def _anything(rng: Random, value: Any) -> Any:
    return rng.choice(
        (
            rng.choice(INTEGERS),
            rng.choice(FLOATS),
            rng.choice(TEXTS),
            _RAW.format(rng.choice(_TOKENS)),
            rng.choice((None, True, False)),
            rng.choice(([], {}, [value], {"a": value}, [value, value], [[]] * 9)),
            rng.choice((str(value)[:1000], [value] * 50, [0] * rng.choice((3, 9, 200)))),
        )
    )


def _changed_object(rng: Random, value: dict[str, Any]) -> dict[str, Any]:
    key, other = rng.choice(list(value)), rng.choice(list(value))
    without = {name: item for name, item in value.items() if name != key}
    return rng.choice(
        (
            without,
            {change_text(rng, name) if name == key else name: item for name, item in value.items()},
            {**value, key: value[other], other: value[key]},
            {**value, change_text(rng, key): value[other]},
            {**without, key: value[key]},
            {**value, f"{key}_": _anything(rng, value[key])},
        )
    )


def _changed_list(rng: Random, value: list[Any]) -> list[Any]:
    place, other = rng.randrange(len(value)), rng.randrange(len(value))
    swapped = list(value)
    swapped[place], swapped[other] = swapped[other], swapped[place]
    return rng.choice(
        (
            value[:place] + value[place + 1 :],
            [*value[:place], value[other], *value[place:]],
            swapped,
            value[:place],
            [*value, _anything(rng, value[place])],
            value * rng.choice((2, 10)),
        )
    )


def _twice(rng: Random, text: bytes) -> bytes:
    """An object with one of its keys again."""
    keys = re.findall(rb'"(?:[^"\\]|\\.)*"(?=:)', text[:100_000])
    return text.replace(b"{", b"{" + rng.choice(keys) + b": 0, ", 1) if keys else text


_TEXT_CHANGES: tuple[Callable[[Random, bytes], bytes], ...] = (
    lambda rng, text: b"\xef\xbb\xbf" + text,
    lambda rng, text: text.decode().encode("utf-16"),
    lambda rng, text: text + b"\0",
    lambda rng, text: b" \n\t" + text + b"\n\n",
    lambda rng, text: b"[" + text + b"]",
    lambda rng, text: text.replace(b",", b",,", 1),
    lambda rng, text: b"",
    change_bytes,
    _twice,
    _twice,
)
