"""Measuring fidelity: the text that comes with shoal, and how the record of a manifest reads."""

from __future__ import annotations

from importlib.resources import files
from typing import Any


def shipped_text() -> str:
    """English prose of about 29 kB that comes with shoal; see data/SOURCES.md beside this file."""
    return (files("shoal.graphs") / "data" / "shipped.txt").read_text(encoding="utf-8")


def fidelity_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of a fidelity record as names and values for people.

    Args:
        record: ``Manifest.fidelity``; a figure that is absent or None is left out.
    """
    rows = [
        ("text", _join(record, "{text}, {tokens} tokens in windows of {window}")),
        ("KL divergence", _join(record, "mean {kl_mean:.3g}, 99.9 % below {kl_p999:.3g} nats")),
        ("perplexity", _join(record, "{perplexity:.4g} (float32: {perplexity_reference:.4g})")),
        ("same likeliest token", _join(record, "{top1_agreement:.2%} of the positions")),
        ("same experts", _join(record, "{router_agreement:.2%} of those chosen")),
    ]
    if record.get("calibration"):
        rows.append(("calibrated on", _join(record["calibration"], "{text}, {tokens} tokens")))
    return [(name, value) for name, value in rows if value]


def _join(record: dict[str, Any], form: str) -> str:
    try:
        return form.format(**record)
    except (KeyError, TypeError, ValueError):  # not measured, or from another version of shoal
        return ""
