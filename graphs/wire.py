"""Reading protocol buffers without their library, strictly: nothing unknown, nothing twice.

Source: the encoding of protocol buffers, https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

VARINT, BYTES, FIXED32 = 0, 2, 5
"""Wire types that are read."""

Field = tuple[str, int, bool]
"""Key, wire type, and whether there may be several."""

Fields = Mapping[int, Field]
"""What a message may have, by field number."""

Message = Mapping[str, list[Any]]
"""What it has: one value or more by key; integers, or bytes."""

_NO_FIELD: Field = ("", -1, False)
_UNSIGNED, _SIGN = (1 << 64) - 1, 1 << 63


class WireError(Exception):
    """The bytes are no message of the expected kind."""


def fields(data: bytes, known: Fields) -> dict[str, list[Any]]:
    """The fields of a message, by key; each has a value at least.

    Raises:
        WireError: a field that is not known, of another type, or twice though there can be one.
        IndexError: the message ends within a number.
    """
    found: dict[str, list[Any]] = {}
    place, end = 0, len(data)
    while place < end:
        tag = data[place]
        place += 1
        if tag >= 0x80:
            tag, place = _varint(data, place - 1)
        wire = tag & 7
        key, expected, is_repeated = known.get(tag >> 3, _NO_FIELD)
        if wire == expected and wire == BYTES:
            length = data[place]
            place += 1
            if length >= 0x80:
                length, place = _varint(data, place - 1)
            if length > end - place:
                raise WireError("it is cut off")
            values: list[Any] = [data[place : place + length]]
            place += length
        elif wire == expected and wire == VARINT:
            value, place = _varint(data, place)
            values = [value]
        elif wire == expected:
            values = [_four_bytes(data, place)]
            place += 4
        elif wire == BYTES and is_repeated:  # numbers may be packed
            length, place = _varint(data, place)
            if length > end - place:
                raise WireError("it is cut off")
            values = _packed(data[place : place + length], expected)
            place += length
        else:
            raise WireError(f"it has a field {tag >> 3} that bundles do not use")
        if key not in found:
            found[key] = values
        elif is_repeated:
            found[key] += values
        else:
            raise WireError(f"it has {key} twice")
    return found


def _packed(data: bytes, wire: int) -> list[Any]:
    values: list[Any] = []
    place = 0
    while place < len(data):
        if wire == VARINT:
            value, place = _varint(data, place)
            values.append(value)
        else:
            values.append(_four_bytes(data, place))
            place += 4
    return values


def _four_bytes(data: bytes, place: int) -> bytes:
    if place + 4 > len(data):
        raise WireError("it is cut off")
    return data[place : place + 4]


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The number at a place, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _UNSIGNED, place
    raise WireError("a number of more than ten bytes")


def one(message: Message, key: str, default: Any = None) -> Any:
    """The value of a field.

    Raises:
        WireError: there is none, nor a default.
    """
    if key in message:
        return message[key][0]
    if default is None:
        raise WireError(f"it has no {key}")
    return default


def text(message: Message, key: str) -> str:
    """The text in a field, which is empty when it is not there."""
    found: bytes = message[key][0] if key in message else b""
    return found.decode("utf-8")


def texts(message: Message, key: str) -> tuple[str, ...]:
    """The texts in a repeated field."""
    return tuple([found.decode("utf-8") for found in message.get(key, ())])


def signed(value: int) -> int:
    """The integer that a varint stands for."""
    return value - (1 << 64) if value & _SIGN else value


def floating(data: bytes) -> float:
    """The float32 that four bytes stand for."""
    (value,) = struct.unpack("<f", data)
    return float(value)
