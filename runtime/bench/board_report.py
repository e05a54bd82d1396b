"""``shoal bench --report``: figures of one board that others can compare with theirs.

A JSON file with everything, and one line for the table in docs/benchmarks.md. Neither holds a host
name, a user name or a path.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoal.runtime.console.report import progress_line
from shoal.runtime.kernels.library import KernelLibrary, find_library
from shoal.runtime.machine.board import Condition, read_board, read_condition, was_held_back
from shoal.runtime.machine.memory import read_memory
from shoal.runtime.machine.processor import read_cpu
from shoal.runtime.model import Model
from shoal.runtime.units import format_bytes, format_count, format_rate

REPORT_VERSION = 1
TABLE_HEADINGS = (
    "board",
    "model",
    "kernels, threads",
    "prefill, tokens/s (prompt)",
    "decode, tokens/s (depth)",
    "read per token",
    "of the bandwidth",
    "state",
    "versions",
)
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
        "instructions": _instructions(model),
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


def write_board_report(report: dict[str, Any], target: str) -> None:
    """Write the report to a file, or to stdout for ``-``, and its line of the table.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(report, indent=1) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="ascii")
    progress_line("bench: a line for docs/benchmarks.md:")
    (sys.stderr if target == "-" else sys.stdout).write(summary(report) + "\n")


def summary(report: dict[str, Any]) -> str:
    """The report as one line: a row of a Markdown table, see ``TABLE_HEADINGS``."""
    model, versions = report["model"], report["versions"]
    prefill = [f"{format_rate(row['tokens_per_s'])} ({row['tokens']})" for row in report["prefill"]]
    decode = [f"{format_rate(row['tokens_per_s'])} ({row['depth']})" for row in report["decode"]]
    name = f"{model['model_type']}, {format_count(model['parameters'])}"
    cells = (
        _board_cell(report),
        f"{name}, {format_count(model['active_parameters'])} active, {model['weights']}",
        _form_cell(report),
        ", ".join(prefill),
        ", ".join(decode),
        format_bytes(model["token_read_bytes"]),
        _bandwidth_cell(report),
        _state_cell(report),
        f"shoal {versions['shoal']}, onnxruntime {versions['onnxruntime']}, {report['date']}",
    )
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


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


def _instructions(model: Model) -> str | None:
    library = find_library()
    is_native = model.kernels == "native" and isinstance(library, KernelLibrary)
    return library.isa if is_native and isinstance(library, KernelLibrary) else None


def _board_cell(report: dict[str, Any]) -> str:
    board, cpu = report["board"], report["cpu"]
    what = "virtual machine" if board["is_virtual"] else cpu["architecture"]
    name = f"{board['name'] or what}: {board['cores']}"
    if board["is_virtual"] and board["name"]:
        name += ", virtual"
    features = " ".join(cpu["features"])
    return f"{name} ({features})" if features else name


def _form_cell(report: dict[str, Any]) -> str:
    form = f"{report['kernels']} {report['instructions'] or ''}".strip() + f", {report['threads']}"
    return form if report["cache"] == "float32" else f"{form}, {report['cache']} cache"


def _bandwidth_cell(report: dict[str, Any]) -> str:
    bandwidth = report["read_bandwidth_bytes_per_s"]
    if bandwidth is None:
        return "unknown"
    share = max(row["share_of_bandwidth"] for row in report["decode"])
    return f"{100 * share:.0f} % of {format_bytes(bandwidth)}/s"


def _state_cell(report: dict[str, Any]) -> str:
    before, after = report["before"], report["after"]
    parts = list(report["board"]["governors"])
    if before["celsius"] is not None and after["celsius"] is not None:
        parts.append(f"{before['celsius']:.0f} to {after['celsius']:.0f} C")
    if after["mhz"] is not None:
        parts.append(f"{after['mhz'][1]} MHz")
    if report["held_back"] is not None:
        parts.append("throttled" if report["held_back"] else "not throttled")
    return ", ".join(parts) or "unknown"
