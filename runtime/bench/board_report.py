"""Figures of one board that others can compare with theirs: no host name, no user name, no path."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from dataclasses import asdict
from typing import Any

from shoal.runtime.machine.board import Condition, read_board, read_condition, was_held_back
from shoal.runtime.machine.memory import read_memory
from shoal.runtime.machine.processor import read_cpu
from shoal.runtime.model import Model

REPORT_VERSION = 1
_MEASURED = (
    "cache",
    "cache_token_bytes",
    "prefill",
    "decode",
    "speculation",
    "memory",
    "load_ms",
    "new_tokens",
    "repeats",
)
_PACKAGES = ("shoal", "onnxruntime", "numpy")


def board_report(
    measured: dict[str, Any], model: Model, before: Condition, bandwidth: float | None
) -> dict[str, Any]:
    """The report as JSON-ready values.

    Args:
        measured: what ``shoal bench`` prints with --json.
        model: what was measured.
        before: the machine before it was.
        bandwidth: bytes per second that memory can be read with, None if that is not known.
    """
    after, memory = read_condition(), read_memory()
    report: dict[str, Any] = {
        "report_version": REPORT_VERSION,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "board": asdict(read_board()),
        "cpu": asdict(read_cpu()),
        "memory_total_bytes": memory.total_bytes if memory else None,
        "page_bytes": os.sysconf("SC_PAGE_SIZE"),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version(), "system": platform.release()},
        "model": _model(model),
        "kernels": model.kernels,
        "instructions": measured["isa"],
        "threads": model.threads,
        "read_bandwidth_bytes_per_s": bandwidth,
        "before": asdict(before),
        "after": asdict(after),
        "held_back": was_held_back(before, after),
    }
    report |= {name: measured[name] for name in _MEASURED if name in measured}
    report["decode"] = [
        row | {"share_of_bandwidth": row["read_bytes_per_s"] / bandwidth if bandwidth else None}
        for row in measured["decode"]
    ]
    return report


def _model(model: Model) -> dict[str, Any]:
    info = model.manifest.model
    return {
        "bundle": model.bundle_id[:12],
        "model_type": info.model_type,
        "num_hidden_layers": info.num_hidden_layers,
        "parameters": info.parameters,
        "active_parameters": info.active_parameters,
        "weights": model.manifest.weights,
        "token_read_bytes": model.manifest.token_read_bytes,
    }
