"""``shoal verify``: every byte against the manifest and, on request, against the checkpoint."""

from __future__ import annotations

import argparse

from shoal.graphs.errors import ShoalError
from shoal.runtime.bundle import Bundle
from shoal.runtime.console.report import ByteProgress, format_bytes, write_json, write_lines
from shoal.runtime.extras import load_export


def verify_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal verify``.

    Raises:
        BundleError: a file is missing or differs from what the manifest says.
        ExportError: a weight or the fidelity differs from what the checkpoint gives.
    """
    verify_checkpoint = None
    if args.checkpoint is not None:  # a missing extra is reported before minutes of reading
        verify_checkpoint = load_export(
            "shoal.export.cli", "verify_checkpoint_command", what="verify --checkpoint"
        )
    try:
        report = verify_bytes(args)
        if verify_checkpoint is not None:
            report["checkpoint"] = verify_checkpoint(args)
    except ShoalError as error:
        if args.json:
            write_json({"bundle": str(args.bundle), "ok": False, "error": str(error)})
        raise
    if args.json:
        write_json(report)
    return 0


def verify_bytes(args: argparse.Namespace) -> dict[str, object]:
    """Read every file of the bundle; the result as JSON-ready values."""
    bundle = Bundle.open(args.bundle)
    bundle.verify_files(ByteProgress("verify"))
    files = bundle.manifest.files
    total_bytes = sum(info.size for info in files.values())
    if not args.json:
        count = f"{len(files)} files, {format_bytes(total_bytes)}"
        write_lines([f"{args.bundle}: {count}, every byte as its manifest says"])
    return {"bundle": str(args.bundle), "ok": True, "files": len(files), "bytes": total_bytes}
