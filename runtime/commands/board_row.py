"""``shoal bench --report``: the figures of a board as JSON and as a row of docs/benchmarks.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shoal.runtime.atomic_file import atomic_file
from shoal.runtime.console.report import progress_line, write_lines
from shoal.runtime.console.streams import write_result
from shoal.runtime.units import format_bytes, format_count, format_rate

REPORT = "the report"
"""What the file holds, for messages."""

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


def write_board_report(report: dict[str, Any], target: str) -> None:
    """Write the report to a file, or to stdout for ``-``, and its line of the table.

    Raises:
        RuntimeFailure: the file cannot be written.
    """
    text = json.dumps(report, indent=1) + "\n"
    if target == "-":
        write_result(text)
    else:
        with atomic_file(Path(target), REPORT) as file:
            file.write(text.encode("ascii"))
    progress_line("bench: a row for docs/benchmarks.md:")
    if target == "-":
        progress_line(summary(report))
    else:
        write_lines([summary(report)])


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
