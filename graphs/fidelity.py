"""Measuring fidelity: the text that comes with shoal, and how much of a text is used."""

from __future__ import annotations

from importlib.resources import files

DEFAULT_FIDELITY_TOKENS = 2048
"""Tokens that int8 is compared with float32 on."""

DEFAULT_CALIBRATE_TOKENS = 8192
"""Tokens whose inputs 4-bit weights are rounded for."""


def shipped_text() -> str:
    """English prose of about 29 kB that comes with shoal; see data/SOURCES.md beside this file."""
    return (files("shoal.graphs") / "data" / "shipped.txt").read_text(encoding="utf-8")
