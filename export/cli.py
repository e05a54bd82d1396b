"""``shoal export`` and the checkpoint half of ``shoal verify``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shoal.export.checkpoint.hub import HubAccess, checkpoint_headers, local_checkpoint
from shoal.export.dry_run import dry_run_record, write_dry_run
from shoal.export.pipeline import ExportReport, export_bundle
from shoal.export.progress import ExportProgress
from shoal.export.tables import write_pairs
from shoal.export.verify import VerifyReport, verify_against_checkpoint
from shoal.export.writing.folder import check_target
from shoal.graphs.errors import ExportError
from shoal.graphs.fidelity import fidelity_rows

_NAMES_SHOWN = 5
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def export_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal export``."""
    access = HubAccess(revision=args.revision, token=args.token)
    check_target(Path(args.bundle).absolute(), args.force)  # before anything is fetched
    if args.dry_run:
        with checkpoint_headers(args.checkpoint, access) as folder:
            record = dry_run_record(folder, args)
        if args.json:
            sys.stdout.write(json.dumps(record, indent=1) + "\n")
        else:
            write_dry_run(record)
        return 0
    with _stopped_like_ctrl_c():
        checkpoint = local_checkpoint(args.checkpoint, access)
        with ExportProgress("export") as progress:
            report = export_bundle(
                checkpoint,
                args.bundle,
                weights=args.weights,
                block_size=args.block_size,
                force=args.force,
                resume=args.resume,
                fidelity=not args.no_fidelity,
                fidelity_text=args.fidelity_text,
                fidelity_tokens=args.fidelity_tokens,
                calibrate=args.calibrate,
                calibrate_tokens=args.calibrate_tokens,
                progress=progress,
            )
    if args.json:
        sys.stdout.write(json.dumps(export_record(report), indent=1) + "\n")
    else:
        _write_export(report)
    return 0


@contextmanager
def _stopped_like_ctrl_c() -> Iterator[None]:
    """Clean up as after Ctrl-C when the system ends the program or the terminal goes away."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what signals do
        return
    # A signal that is ignored, as SIGHUP under nohup, stays ignored.
    taken = [s for s in _STOP_SIGNALS if signal.getsignal(s) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def export_record(report: ExportReport) -> dict[str, Any]:
    """What an export did as JSON-ready values."""
    manifest = report.manifest
    return {
        "bundle": str(report.bundle),
        "weights": manifest.weights,
        "parameters": manifest.model.parameters,
        "active_parameters": manifest.model.active_parameters,
        "bundle_bytes": sum(info.size for info in manifest.files.values()),
        "token_read_bytes": manifest.token_read_bytes,
        "seconds": report.seconds,
        "peak_memory_bytes": report.peak_memory_bytes,
        "fidelity": manifest.fidelity,
        "notes": list(manifest.notes),
    }


def verify_checkpoint_command(args: argparse.Namespace) -> dict[str, Any]:
    """Compare a bundle with the checkpoint it was made from: every graph, weight, the fidelity.

    Args:
        args: the options of ``shoal verify``.

    Returns:
        The result as JSON-ready values; without ``args.json`` it is printed too.

    Raises:
        ExportError: something differs.
    """
    checkpoint = local_checkpoint(
        args.checkpoint, HubAccess(revision=args.revision, token=args.token)
    )
    with ExportProgress("verify") as progress:
        report = verify_against_checkpoint(args.bundle, checkpoint, progress=progress)
    if report.differing:
        raise ExportError(
            f"{args.bundle}: {len(report.differing)} parts differ from what {args.checkpoint} "
            f"gives: {_shortened(report.differing)}; export it again or name the right checkpoint"
        )
    fidelity = report.fidelity.to_json() if report.fidelity else None
    if not args.json:
        _write_verification(args, report, fidelity)
    return {
        "path": str(args.checkpoint),
        "tensors": report.tensors,
        "unchecked": len(report.unchecked),
        "fidelity": fidelity,
    }


def _write_export(report: ExportReport) -> None:
    manifest = report.manifest
    size_bytes = sum(info.size for info in manifest.files.values())
    write_pairs(
        str(report.bundle),
        [
            ("weights", f"{manifest.weights}, {len(manifest.tensors)} tensors"),
            ("size", f"{size_bytes / 1e6:.1f} MB"),
            ("read per token", f"{manifest.token_read_bytes / 1e6:.1f} MB"),
            (
                "took",
                f"{report.seconds:.1f} s, at most {report.peak_memory_bytes / 1e6:.0f} MB memory",
            ),
        ],
    )
    if manifest.fidelity:
        write_pairs("\nFidelity to the float32 model", fidelity_rows(manifest.fidelity))
    sys.stdout.writelines(f"note: {note}\n" for note in manifest.notes)


def _write_verification(
    args: argparse.Namespace, report: VerifyReport, fidelity: dict[str, Any] | None
) -> None:
    sys.stdout.write(
        f"{args.bundle}: {report.tensors} tensors and all graphs are what {args.checkpoint} gives\n"
    )
    if report.unchecked:
        sys.stdout.write(
            f"not compared: {len(report.unchecked)} tensors, which were rounded for a text\n"
        )
    if fidelity:
        write_pairs("\nFidelity to the float32 model, measured again", fidelity_rows(fidelity))


def _shortened(names: tuple[str, ...]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
