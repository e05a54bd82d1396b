"""Objects in a JSON file, read field by field; what is wrong is named with its place."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from typing import Any

_LONGEST_SHOWN = 200


class FieldError(ValueError):
    """A field is not what it must be: its place, what was expected and what was found."""


class Fields:
    """A JSON object.

    Args:
        content: the object.
        place: where it lies, such as ``model`` or ``normalizer: normalizers: 1``.

    Raises:
        FieldError: it is no object.
    """

    def __init__(self, content: object, place: str = "") -> None:
        self.place = place
        if not isinstance(content, Mapping):
            raise _error(place, "an object", content)
        self._content = content

    def get(self, key: str) -> Any:
        """The value of a field, None if it has none."""
        return self._content.get(key)

    def text(self, key: str) -> str:
        """The text in a field."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.error(key, "a text", value)
        return value

    def integer(self, key: str, least: int = 0) -> int:
        """The integer in a field, of at most 31 bits."""
        value = self.get(key)
        if not are_ids([value]) or value < least:
            raise self.error(key, f"an integer from {least} to 2**31 - 1", value)
        return int(value)

    def integers(self, key: str) -> list[int]:
        """The integers in a field that holds a list of them, of at most 31 bits each."""
        values = self.items(key)
        if not are_ids(values):
            raise self.error(key, "integers from 0 to 2**31 - 1", values)
        return values

    def items(self, key: str) -> list[Any]:
        """The values in a field that holds a list."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.error(key, "a list", value)
        return value

    def child(self, key: str) -> Fields:
        """The object in a field."""
        return Fields(self.get(key), self._place_of(key))

    def child_or_none(self, key: str) -> Fields | None:
        """The object in a field that may be null or missing."""
        return None if self.get(key) is None else self.child(key)

    def children(self, key: str) -> list[Fields]:
        """The objects in a field that holds a list of them."""
        place = self._place_of(key)
        return [Fields(item, f"{place}: {n}") for n, item in enumerate(self.items(key))]

    def error(self, key: str, expected: str, found: object) -> FieldError:
        """What to raise for a field's value."""
        return _error(self._place_of(key), expected, found)

    def _place_of(self, key: str) -> str:
        return f"{self.place}: {key}" if self.place else key


def are_ids(values: Collection[Any]) -> bool:
    """Whether all values are integers of at most 31 bits that are not negative."""
    is_whole = set(map(type, values)) <= {int}
    return is_whole and 0 <= min(values, default=0) <= max(values, default=0) < 1 << 31


def one_line(text: str) -> str:
    """The start of a text from a file, without line breaks and control characters."""
    words = " ".join(text.split())[:_LONGEST_SHOWN]
    return "".join(each if each.isprintable() else "\ufffd" for each in words)


def _error(place: str, expected: str, found: object) -> FieldError:
    where = f"{one_line(place)}: " if place else ""
    return FieldError(f"{where}expected {expected}, found {reprlib.repr(found)}")
