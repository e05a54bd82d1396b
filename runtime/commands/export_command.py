"""``shoal export``: a bundle from a checkpoint, or what it would be."""

from __future__ import annotations

import argparse
import functools
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shoal.graphs.manifest import Manifest
from shoal.graphs.recipes import WeightFormat
from shoal.runtime.commands.checkpoints import fetch_checkpoint
from shoal.runtime.console.progress import READING_CHECKPOINT, WorkProgress
from shoal.runtime.console.record_rows import (
    MEMORY_COLUMNS,
    fidelity_rows,
    format_rows,
    memory_rows,
)
from shoal.runtime.console.report import (
    write_grid,
    write_json,
    write_lines,
    write_pairs,
)
from shoal.runtime.extras import load_export
from shoal.runtime.units import format_bytes, format_count

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

_load = functools.partial(load_export, what="export")


def export_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal export``."""
    folder = _load("shoal.export.writing.folder")
    folder.check_target(args.bundle.absolute(), args.force)
    if not args.dry_run:
        folder.check_place(args.bundle)  # before anything is fetched
    if args.dry_run:
        hub = {"revision": args.revision, "token": args.token}
        dry_run = _load("shoal.export.dry_run")
        record = dry_run.dry_run_record(
            args.checkpoint, args.bundle, **_export_options(args), **hub
        )
    else:
        record = _export(args)
    if args.json:
        write_json(record)
    elif args.dry_run:
        _write_dry_run(record)
    else:
        _write_export(record)
    return 0


def _export(args: argparse.Namespace) -> dict[str, Any]:
    """Export, and say what that did as JSON-ready values."""
    pipeline = _load("shoal.export.pipeline")
    _load("shoal.export.process_settings").for_exporting()
    with _stopped_like_ctrl_c():
        checkpoint = fetch_checkpoint(args.checkpoint, args, what="export")
        with WorkProgress("export", every_share=0.1, opening=READING_CHECKPOINT) as progress:
            report = pipeline.export_bundle(
                checkpoint,
                args.bundle,
                force=args.force,
                resume=args.resume,
                progress=progress,
                **_export_options(args),
            )
    manifest: Manifest = report.manifest
    return {
        "bundle": str(report.bundle),
        "weights": manifest.weights,
        "tensors": len(manifest.tensors),
        "parameters": manifest.model.parameters,
        "active_parameters": manifest.model.active_parameters,
        "bundle_bytes": sum(info.size for info in manifest.files.values()),
        "token_read_bytes": manifest.token_read_bytes,
        "seconds": report.seconds,
        "peak_memory_bytes": report.peak_memory_bytes,
        "fidelity": manifest.fidelity,
        "notes": list(manifest.notes),
    }


def _export_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that say what the bundle will be."""
    return {
        "weights": args.weights,
        "block_size": args.block_size,
        "fidelity": not args.no_fidelity,
        "fidelity_text": args.fidelity_text,
        "fidelity_tokens": args.fidelity_tokens,
        "calibrate": args.calibrate,
        "calibrate_tokens": args.calibrate_tokens,
    }


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


def _write_export(record: dict[str, Any]) -> None:
    memory = format_bytes(record["peak_memory_bytes"])
    write_pairs(
        record["bundle"],
        [
            ("weights", f"{record['weights']}, {record['tensors']} tensors"),
            ("size", format_bytes(record["bundle_bytes"])),
            ("read per token", format_bytes(record["token_read_bytes"])),
            ("took", f"{record['seconds']:.1f} s, at most {memory} of memory"),
        ],
    )
    if record["fidelity"]:
        write_lines([""])
        write_pairs("Fidelity to the float32 model", fidelity_rows(record["fidelity"]))
    write_lines([f"note: {note}" for note in record["notes"]])


def _write_dry_run(record: dict[str, Any]) -> None:
    write_pairs(
        f"{record['bundle']} (dry run: nothing is written)",
        [
            ("weights", f"{record['weights']}, {record['tensors']} tensors"),
            ("parameters", format_count(record["parameters"])),
            ("active per token", format_count(record["active_parameters"])),
            ("size", format_bytes(record["bundle_bytes"])),
            ("free on the disk", format_bytes(record["free_bytes"])),
            ("read per token", format_bytes(record["token_read_bytes"])),
            ("latent cache per token", format_bytes(record["cache_token_bytes"])),
        ],
    )
    formats = {kind: WeightFormat(**form) for kind, form in record["formats"].items()}
    if formats:
        write_lines([""])
        write_pairs("Weights", format_rows(formats))
    write_lines([""])
    files = [(name, format_bytes(size)) for name, size in record["files"].items()]
    write_grid("Files", ("name", "size"), files)
    write_lines([""])
    write_grid(
        "Memory to run the bundle (estimate without scratch memory, portable kernels)",
        MEMORY_COLUMNS,
        memory_rows(record["memory"]),
    )
    notes = list(record["notes"])
    if record["bundle_bytes"] > record["free_bytes"]:
        notes.append("the bundle does not fit on the disk: free some space or choose another place")
    if notes:
        write_lines([""])
        write_pairs("Notes", [("note", note) for note in notes])
