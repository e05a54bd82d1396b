"""``shoal verify``: every byte against the manifest and, on request, against the checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from shoal.graphs.errors import ExportError, ShoalError
from shoal.runtime.bundle import Bundle
from shoal.runtime.commands.checkpoints import fetch_checkpoint
from shoal.runtime.console.progress import READING_CHECKPOINT, WorkProgress
from shoal.runtime.console.record_rows import fidelity_rows
from shoal.runtime.console.report import write_json, write_lines, write_pairs
from shoal.runtime.extras import load_export
from shoal.runtime.units import format_bytes

_NAMES_SHOWN = 5


def verify_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal verify``.

    Raises:
        BundleError: a file is missing or differs from what the manifest says.
        ExportError: a weight or the fidelity differs from what the checkpoint gives.
    """
    if args.checkpoint is not None:  # a missing extra is reported before minutes of reading
        load_export("shoal.export.verify", what="verify --checkpoint")
    try:
        report = verify_bytes(args)
        if args.checkpoint is not None:
            report["checkpoint"] = verify_checkpoint(args)
    except ShoalError as error:
        if args.json:
            write_json({"bundle": str(args.bundle), "ok": False, "error": str(error)})
        raise
    if args.json:
        write_json(report)
    return 0


def verify_bytes(args: argparse.Namespace) -> dict[str, Any]:
    """Read every file of the bundle; the result as JSON-ready values."""
    bundle = Bundle.open(args.bundle)
    with WorkProgress("verify") as progress:
        bundle.verify_files(progress)
        bundle.verify_graphs()
    files = bundle.manifest.files
    total_bytes = sum(info.size for info in files.values())
    if not args.json:
        count = f"{len(files)} files, {format_bytes(total_bytes)}"
        write_lines([f"{args.bundle}: {count}, every byte as its manifest says"])
    return {"bundle": str(args.bundle), "ok": True, "files": len(files), "bytes": total_bytes}


def verify_checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    """Compare a bundle with the checkpoint it was made from: every graph, weight, the fidelity.

    Returns:
        The result as JSON-ready values; without ``args.json`` it is printed too.

    Raises:
        ExportError: something differs.
    """
    verify = load_export("shoal.export.verify", what="verify --checkpoint")
    load_export("shoal.export.process_settings", what="verify --checkpoint").for_exporting()
    checkpoint = fetch_checkpoint(args.checkpoint, args, what="verify --checkpoint")
    with WorkProgress("verify", every_share=0.1, opening=READING_CHECKPOINT) as progress:
        report = verify.verify_against_checkpoint(args.bundle, checkpoint, progress=progress)
    if report.differing:
        raise ExportError(
            f"{args.bundle}: {len(report.differing)} parts differ from what {args.checkpoint} "
            f"gives: {_shortened(report.differing)}; export it again or name the right checkpoint"
        )
    record = {
        "path": str(args.checkpoint),
        "tensors": report.tensors,
        "unchecked": len(report.unchecked),
        "fidelity": report.fidelity.to_json() if report.fidelity else None,
    }
    if not args.json:
        _write_checkpoint(args, record)
    return record


def _write_checkpoint(args: argparse.Namespace, record: dict[str, Any]) -> None:
    compared = f"{record['tensors']} tensors and all graphs"
    write_lines([f"{args.bundle}: {compared} are what {args.checkpoint} gives"])
    if record["unchecked"]:
        unchecked = f"{record['unchecked']} tensors, which were calibrated on a text"
        write_lines([f"not compared: {unchecked}"])
    if record["fidelity"]:
        write_lines([""])
        rows = fidelity_rows(record["fidelity"])
        write_pairs("Fidelity to the float32 model, measured again", rows)


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
