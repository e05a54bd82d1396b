"""Records of bundles and checkpoints as names and values for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.graphs.recipes import WeightFormat
from shoal.runtime.units import format_bytes

MEMORY_COLUMNS = ("context tokens", "latent cache", "with weights")


def format_rows(formats: Mapping[str, WeightFormat]) -> list[tuple[str, str]]:
    """How weights are stored, and which kinds of weights are stored so."""
    kinds: dict[str, list[str]] = {}
    for kind, form in formats.items():
        terms = ", inputs of two terms" if form.input_terms == 2 else ""
        text = f"{form.bits} bits, blocks of {form.block_size}{terms}"
        kinds.setdefault(text, []).append(kind.replace("_", " "))
    return [(text, ", ".join(names)) for text, names in kinds.items()]


def memory_rows(memory: Sequence[Mapping[str, int]]) -> list[tuple[str, ...]]:
    """Memory by length of the context, in ``MEMORY_COLUMNS``.

    Args:
        memory: what ``graphs.footprint.memory_by_context`` gives.
    """
    return [
        (
            str(row["context_tokens"]),
            format_bytes(row["cache_bytes"]),
            format_bytes(row["memory_bytes"]),
        )
        for row in memory
    ]


def experts_text(report: Mapping[str, Any]) -> str:
    """How many routed experts a token uses, and of how many."""
    if not report["num_moe_layers"]:
        return "none, a dense model"
    return (
        f"{report['num_experts_per_tok']} of {report['n_routed_experts']} "
        f"in {report['num_moe_layers']} layers"
    )


def fidelity_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of a fidelity record.

    Args:
        record: ``Manifest.fidelity``; a figure that is absent or None is left out.
    """
    rows = [
        ("text", _join(record, "{text}, {tokens} tokens in windows of {window}")),
        ("KL divergence", _join(record, "mean {kl_mean:.3g}, 99.9 % below {kl_p999:.3g} nats")),
        ("perplexity", _join(record, "{perplexity:.4g} (float32: {perplexity_reference:.4g})")),
        ("same top-1 token", _join(record, "{top1_agreement:.2%} of the positions")),
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
