"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def format_bytes(count: float) -> str:
    """Bytes with a decimal unit: ``29.9 MB``."""
    return _with_unit(count, ("bytes", "kB", "MB", "GB", "TB"))


def format_count(count: float) -> str:
    """A number of things, shortened: ``12.8 M``."""
    return _with_unit(count, ("", "k", "M", "G", "T")).rstrip()


def _with_unit(count: float, units: Sequence[str]) -> str:
    power = 0
    while abs(count) >= 999.5 and power < len(units) - 1:
        count /= 1000.0
        power += 1
    return f"{count:.0f} {units[0]}" if power == 0 else f"{count:.3g} {units[power]}"


def format_rate(value: float) -> str:
    """A rate or a time with three significant digits, never in exponent form."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"
