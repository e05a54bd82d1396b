"""Damage for protocol buffers: fields that are left out, repeated, moved, or of another kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from tests.fuzz.mutations import INTEGERS, TEXTS, change_bytes, change_integer, change_text

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED64: 8, FIXED32: 4}
_DEEPER = 0.9
_MOST_DONORS = 200
_DEEPEST_DONOR = 5

Path = tuple[int, ...]
"""Numbers of fields, from the outermost message to one within it."""

Donors = dict[Path, list["Field"]]
"""Fields that stand somewhere in other messages, by where."""


@dataclass(frozen=True)
class Field:
    """One field as it stands in a message."""

    number: int
    wire: int
    value: int | bytes

    @property
    def content(self) -> bytes:
        """What a field of bytes holds."""
        return self.value if isinstance(self.value, bytes) else b""


def read_fields(data: bytes) -> list[Field]:
    """The fields of a message; none if the bytes are no message."""
    found, place = [], 0
    try:
        while place < len(data):
            tag, place = _read_varint(data, place)
            number, wire = tag >> 3, tag & 7
            value: int | bytes
            if wire == VARINT:
                value, place = _read_varint(data, place)
            else:
                length = _SIZES.get(wire, 0)
                if wire == BYTES:
                    length, place = _read_varint(data, place)
                elif not length:
                    return []
                if not number or length > len(data) - place:
                    return []
                value, place = data[place : place + length], place + length
            found.append(Field(number, wire, value))
    except IndexError:
        return []
    return found


def write_fields(fields: list[Field]) -> bytes:
    """The message of these fields."""
    message = bytearray()
    for field in fields:
        message += _varint(field.number << 3 | field.wire)
        if isinstance(field.value, int):
            message += _varint(field.value)
        else:
            message += (_varint(len(field.value)) if field.wire == BYTES else b"") + field.value
    return bytes(message)


def gather_donors(data: bytes, donors: Donors, path: Path = ()) -> None:
    """Add the fields of a message, and of the messages in it, to those of other messages."""
    for field in read_fields(data):
        here = (*path, field.number)
        known = donors.setdefault(here, [])
        if len(known) < _MOST_DONORS and field not in known:
            known.append(field)
        if len(here) < _DEEPEST_DONOR:
            gather_donors(field.content, donors, here)


def change_message(rng: Random, data: bytes, donors: Donors, path: Path = ()) -> bytes:
    """The message with one change somewhere in it.

    Args:
        rng: decides.
        data: the message.
        donors: fields of other messages, to be put in.
        path: where the message is in an outer one.
    """
    fields = read_fields(data)
    if not fields:
        return change_bytes(rng, data)
    place = rng.choices(range(len(fields)), [1 + len(field.content) ** 0.5 for field in fields])[0]
    field = fields[place]
    here = (*path, field.number)
    inner = read_fields(field.content) and here in {known[: len(here)] for known in donors}
    if inner and rng.random() < _DEEPER:
        fields[place] = replace(field, value=change_message(rng, field.content, donors, here))
    else:
        _change_fields(rng, fields, place, donors.get(here, [field]))
    return write_fields(fields)


def _change_fields(rng: Random, fields: list[Field], place: int, same: list[Field]) -> None:
    field, other = fields[place], rng.randrange(len(fields))
    match rng.randrange(12):
        case 0 | 1:
            del fields[place]
        case 2:
            fields.insert(other, field)
        case 3:
            fields[place], fields[other] = fields[other], field
        case 4 | 5 | 6:
            fields[place] = rng.choice(same)
        case 7:
            fields.insert(place, rng.choice(same))
        case 8:
            fields[place] = replace(field, number=rng.choice((1, 2, 3, 5, 7, 13, 25, 15, 1 << 28)))
        case 9 if fields[other].wire == field.wire:
            fields[place] = replace(field, value=fields[other].value)
        case _:
            fields[place] = _changed_value(rng, field)


def _changed_value(rng: Random, field: Field) -> Field:
    if isinstance(field.value, int):
        return replace(field, value=change_integer(rng, field.value) & ((1 << 64) - 1))
    if field.wire != BYTES:
        return replace(field, value=rng.randbytes(len(field.value)))
    try:
        text = change_text(rng, field.value.decode()).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    number = str(rng.choice(INTEGERS)).encode()
    return replace(field, value=rng.choice((text, change_bytes(rng, field.value), number)))


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[place] & 0x7F) << shift
        place += 1
        if data[place - 1] < 0x80:
            break
    return value, place


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
