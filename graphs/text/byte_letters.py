"""The visible characters that stand for bytes in vocabularies of GPT-2's kind."""

from __future__ import annotations


def byte_letters() -> list[str]:
    """The character that stands for each byte, in GPT-2's order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    stand_ins = {byte: chr(0x100 + place) for place, byte in enumerate(others)}
    return [stand_ins.get(byte, chr(byte)) for byte in range(256)]
