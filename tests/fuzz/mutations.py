"""Damage for any format: bytes, numbers and texts that readers stumble over."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

INTEGERS = (
    *(0, 1, -1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 1 << 15, (1 << 16) - 1, 1 << 16, 1 << 20),
    *((1 << 31) - 1, 1 << 31, -(1 << 31), (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 53, 1 << 62),
    *((1 << 63) - 1, 1 << 63, -(1 << 63), (1 << 64) - 1, 1 << 64, 10**18, 10**30),
)
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-300, 1e38, 1e308, -1e308, float("inf"), float("nan"))
NAMES = (
    *("", ".", "..", "../outside/canary", "../../outside/canary", "/etc/passwd", "a/b", "a\\b"),
    *("C:\\a", "a\0b", "\0", "-rf", "~", "con", "a" * 300, "weights.bin", "manifest.json"),
)
TEXTS = (
    *NAMES,
    *("\x1b]52;c;aGk=\a", "\x1b[2J\x1b[H", "\x9b31m", "\u202eabc", "\u2028", "\ufeff", "\ufffd"),
    *("\r\nerror: all is well", "\t\n\r\v\f", "%s%n%99999d", "{{ 7 * 7 }}", "${a}", "\U0010ffff"),
    *("\ud800", "a\udc80b", "null", "true", "0", "1e400", "é" * 1000, "x" * 100_000, " " * 5000),
)

_MOST_CHANGES = 4
_LONGEST_SPAN = 64


def number_of_changes(rng: Random) -> int:
    """One mostly, so that single checks are met; several now and then."""
    return 1 if rng.random() < 0.7 else rng.randint(2, _MOST_CHANGES)


def change_integer(rng: Random, value: int) -> int:
    """Another integer: extreme, or close to this one."""
    near = (value + 1, value - 1, value * 2, -value, value ^ 1 << rng.randrange(64))
    return rng.choice(INTEGERS) if rng.random() < 0.6 else rng.choice(near)


def change_text(rng: Random, text: str) -> str:
    """Another text: hostile, or one with something put in, taken out or repeated."""
    if not text or rng.random() < 0.4:
        return rng.choice(TEXTS)
    begin = rng.randrange(len(text))
    end = min(len(text), begin + rng.randint(1, _LONGEST_SPAN))
    put = rng.choice(
        ("", text[begin:end] * 2, rng.choice(TEXTS), text[begin:end].swapcase(), text[:end])
    )
    return text[:begin] + put + text[end:]


def change_bytes(rng: Random, data: bytes) -> bytes:
    """Other bytes: some flipped, taken out, put in, moved, cut off or added."""
    return rng.choice(_BYTE_CHANGES)(rng, bytearray(data))


def _flip(rng: Random, data: bytearray) -> bytes:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _set_byte(rng: Random, data: bytearray) -> bytes:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(data)


def _set_number(rng: Random, data: bytearray) -> bytes:
    size = rng.choice((2, 4, 8))
    if len(data) >= size:
        place = rng.randrange(len(data) - size + 1)
        number = rng.choice(INTEGERS) & ((1 << 8 * size) - 1)
        data[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))
    return bytes(data)


def _take_out(rng: Random, data: bytearray) -> bytes:
    begin, end = _span(rng, data)
    del data[begin:end]
    return bytes(data)


def _put_in(rng: Random, data: bytearray) -> bytes:
    begin, end = _span(rng, data)
    data[begin:begin] = rng.choice((data[begin:end], rng.randbytes(8), bytes(16)))
    return bytes(data)


def _clear(rng: Random, data: bytearray) -> bytes:
    begin, end = _span(rng, data)
    data[begin:end] = rng.choice((b"\0", b"\xff")) * (end - begin)
    return bytes(data)


def _move(rng: Random, data: bytearray) -> bytes:
    begin, end = _span(rng, data)
    span = data[begin:end]
    del data[begin:end]
    place = rng.randint(0, len(data))
    data[place:place] = span
    return bytes(data)


def _cut_off(rng: Random, data: bytearray) -> bytes:
    return bytes(data[: rng.randint(0, len(data))])


def _add(rng: Random, data: bytearray) -> bytes:
    return bytes(data) + rng.choice((b"\0", b"\n", bytes(512), rng.randbytes(7), bytes(data[:99])))


def _span(rng: Random, data: bytearray) -> tuple[int, int]:
    begin = rng.randint(0, len(data))
    return begin, min(len(data), begin + rng.randint(1, _LONGEST_SPAN))


_BYTE_CHANGES: tuple[Callable[[Random, bytearray], bytes], ...] = (
    *(_flip, _flip, _set_byte, _set_number, _take_out, _put_in, _clear, _move, _cut_off, _add),
)
