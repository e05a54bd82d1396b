"""``shoal pack`` and ``shoal unpack``: a bundle as one file, and back."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from shoal.graphs.errors import InputError
from shoal.runtime.bundle import Bundle
from shoal.runtime.console.progress import WorkProgress
from shoal.runtime.console.report import progress_line, write_json, write_lines
from shoal.runtime.packing.device_wheels import fetch_wheels, find_wheels
from shoal.runtime.packing.pack import check_target, write_pack
from shoal.runtime.packing.pack_format import WHEEL_FOLDER, Index
from shoal.runtime.packing.unpack import unpack
from shoal.runtime.units import format_bytes


def pack_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal pack``.

    Raises:
        BundleError: the bundle is damaged.
        InputError: the file exists, or the wheels are not there.
        RuntimeFailure: no room, or pip fails.
    """
    if args.fetch and args.wheels is None:
        raise InputError("--fetch: expected --wheels with the folder of shoal's own wheel; add it")
    bundle = Bundle.open(args.bundle)
    check_target(args.file)
    with tempfile.TemporaryDirectory(prefix="shoal-wheels-") as folder:
        wheels = _wheels(args, Path(folder))
        with WorkProgress("pack") as progress:
            index = write_pack(bundle, args.file, wheels, progress)
    if args.json:
        write_json({"file": str(args.file)} | _describe(index))
    else:
        write_lines([f"{args.file}: {_sentence(index)}"])
    return 0


def unpack_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal unpack``.

    Raises:
        BundleError: the pack is damaged.
        InputError: the folder exists, or the file does not.
        RuntimeFailure: no room, or the disk refuses.
    """
    try:
        with WorkProgress("unpack") as progress:
            bundle = unpack(args.file, args.folder, progress)
    except KeyboardInterrupt:
        progress_line("unpack: what is written stays; run the same command again to continue")
        raise
    size = sum(info.size for info in bundle.manifest.files.values())
    if args.json:
        write_json({"bundle": str(args.folder), "bytes": size})
    else:
        write_lines([f"{args.folder}: {format_bytes(size)}, every byte checked"])
    return 0


def _wheels(args: argparse.Namespace, folder: Path) -> list[Path]:
    if args.wheels is None:
        return []
    if not args.wheels.is_dir():
        raise InputError(f"{args.wheels}: expected a folder with wheels; check the path")
    if args.fetch is None:
        return find_wheels(args.wheels)
    progress_line(f"pack: fetching wheels for {args.fetch} and Python {args.python}")
    return fetch_wheels(args.wheels, folder, machine=args.fetch, python=args.python)


def _describe(index: Index) -> dict[str, object]:
    return {
        "bytes": index.pack_bytes(),
        "parts": len(index.parts),
        "wheels": [part.file_name for part in index.of(WHEEL_FOLDER)],
    }


def _sentence(index: Index) -> str:
    wheels = len(index.of(WHEEL_FOLDER))
    files = len(index.parts) - wheels
    with_wheels = f" and {wheels} wheels" if wheels else ""
    return f"{format_bytes(index.pack_bytes())}, {files} files of a bundle{with_wheels}"
