"""What the rounds say: medians, ratios inside a round, and shares of the machine's limits."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Round = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All figures of a comparison."""

    model: str
    threads: int
    rounds: list[Round]


def lines_of(measured: Measured) -> list[str]:
    """The comparison as text."""
    rounds = measured.rounds
    forms = [form for form in ("llama.cpp", "native", "portable") if form in rounds[0]]
    limits = rounds[0]["limits"]
    read = _median(rounds, lambda one: one["limits"]["read_bytes_per_s"]) / 1e9
    compute = _median(rounds, lambda one: one["limits"]["multiply_adds_per_s"]) / 1e9
    lines = [
        f"{measured.model}, {measured.threads} threads, medians of {len(rounds)} rounds",
        f"limits: reads {read:.1f} GB/s, {compute:.0f} G int8 multiply-adds/s "
        f"({limits['instructions']})",
        "",
        _row(["", *forms, *(f"native / {form}" for form in forms if form != "native"), "limit"]),
    ]
    for name in rounds[0]["native"]["tokens_per_s"]:
        speeds = [_median(rounds, lambda one: one[form]["tokens_per_s"][name]) for form in forms]  # noqa: B023
        ratios = [
            _median(
                rounds,
                lambda one: one["native"]["tokens_per_s"][name] / one[form]["tokens_per_s"][name],  # noqa: B023
            )
            for form in forms
            if form != "native"
        ]
        share = _median(rounds, lambda one: limit_share(one, name))  # noqa: B023
        cells = [f"{speed:.1f}" for speed in speeds] + [f"{ratio:.2f}" for ratio in ratios]
        lines.append(_row([f"{name} tokens/s", *cells, f"{share:.0%}"]))
    for key, unit, factor in (
        ("load_s", "load s", 1.0),
        ("anonymous_bytes", "anonymous MB", 1e-6),
        ("resident_bytes", "resident MB", 1e-6),
    ):
        values = [_median(rounds, lambda one: one[form][key]) * factor for form in forms]  # noqa: B023
        lines.append(_row([unit, *(f"{value:.3g}" for value in values)]))
    return lines


def limit_share(one: Round, name: str) -> float:
    """The native kernels' share of what the machine could do at most.

    Decoding is held against reading what a token must read; a prompt against the multiply-adds of
    its tokens with the weights, those of attention not counted.
    """
    native, limits = one["native"], one["limits"]
    if name.startswith("decode"):
        return float(native["read_bytes_per_s"][name] / limits["read_bytes_per_s"])
    work = native["tokens_per_s"][name] * native["multiply_adds_per_token"]
    return float(work / limits["multiply_adds_per_s"])


def _median(rounds: list[Round], value: Callable[[Round], float]) -> float:
    return statistics.median(value(one) for one in rounds)


def _row(cells: list[str]) -> str:
    return f"{cells[0]:22}" + "".join(f"{cell:>19}" for cell in cells[1:])
