"""``shoal inspect CHECKPOINT``: what a checkpoint is and what a bundle of it will need."""

from __future__ import annotations

import argparse
from typing import Any

from shoal.runtime.console.record_rows import MEMORY_COLUMNS, experts_text, memory_rows
from shoal.runtime.console.report import write_grid, write_json, write_lines, write_pairs
from shoal.runtime.extras import load_for_checkpoint
from shoal.runtime.units import format_bytes, format_count, format_rate


def inspect_checkpoint(args: argparse.Namespace) -> int:
    """Carry out ``shoal inspect`` on a checkpoint."""
    inspection = load_for_checkpoint(
        "shoal.export.inspection", args.path, what="inspecting a checkpoint"
    )
    report = inspection.checkpoint_report(args.path, revision=args.revision, token=args.token)
    if args.json:
        write_json(report)
    else:
        _write_report(report)
    return 0


def _write_report(report: dict[str, Any]) -> None:
    total, active = report["parameters"], report["active_parameters"]
    rows = [
        ("model", f"{report['model_type']}, {report['num_hidden_layers']} layers"),
        ("stored as", ", ".join(report["dtypes"])),
        ("parameters", format_count(total)),
        ("active per token", f"{format_count(active)} ({format_rate(100 * active / total)} %)"),
        ("as int8 bundle", format_bytes(report["int8_bytes"])),
        ("as fp32 bundle", format_bytes(report["fp32_bytes"])),
        ("read per token", f"{format_bytes(report['token_read_bytes'])} (int8)"),
        ("latent cache per token", format_bytes(report["cache_token_bytes"])),
        ("longest context", f"{report['max_position_embeddings']} tokens"),
        ("experts", experts_text(report)),
        ("MTP modules", str(report["num_mtp_layers"])),
    ]
    write_pairs(report["path"], rows)
    write_lines([""])
    write_grid(
        "Memory to run the int8 bundle (estimate without scratch memory, portable kernels)",
        MEMORY_COLUMNS,
        memory_rows(report["memory"]),
    )
    write_lines([f"note: {note}" for note in report["notes"]])
