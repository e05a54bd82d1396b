"""The options of ``shoal pack`` and ``shoal unpack``."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from shoal.runtime.commands.options_common import add_bundle
from shoal.runtime.packing.device_wheels import MACHINES


def add_pack_options(verb: argparse.ArgumentParser) -> None:
    """Set what ``shoal pack`` takes."""
    verb.description = (
        "Put a bundle into one file, a tar archive with checksums, to copy to a device. Every byte "
        "is checked on the way. With --wheels the Python packages of a folder go in too, and with "
        "--fetch pip downloads those that shoal needs on that kind of machine, so that a device "
        "without internet can install them. docs/deploy-arm.md shows the steps."
    )
    verb.epilog = (
        "examples:\n"
        "  shoal pack build/tiny tiny.pack\n"
        "  shoal pack build/tiny tiny.pack --wheels dist --fetch aarch64 --python 3.11"
    )
    add_bundle(verb)
    verb.add_argument("file", metavar="FILE", type=Path, help="file to make")
    verb.add_argument(
        "--wheels",
        metavar="DIR",
        type=Path,
        help="add the wheels of this folder; shoal's own must be among them (make wheels)",
    )
    verb.add_argument(
        "--fetch",
        choices=MACHINES,
        help="take only shoal's own wheel from that folder, and let pip download what it needs on "
        "such a machine: aarch64 or x86_64",
    )
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    verb.add_argument(
        "--python",
        type=_python_version,
        default=own,
        metavar="X.Y",
        help="version of the device's Python, for --fetch (default: this one's)",
    )


def add_unpack_options(verb: argparse.ArgumentParser) -> None:
    """Set what ``shoal unpack`` takes."""
    verb.description = (
        "Make a bundle folder of a file that `shoal pack` made. Every byte is checked; the folder "
        "appears when all are right. If it is stopped, the same command continues where it was. "
        "Wheels in the file are checked but stay there; `tar xf FILE wheels` takes them out."
    )
    verb.epilog = "example:\n  shoal unpack tiny.pack tiny"
    verb.add_argument("file", metavar="FILE", type=Path, help="file that `shoal pack` made")
    verb.add_argument("folder", metavar="FOLDER", type=Path, help="bundle folder to make")


def _python_version(text: str) -> str:
    if not re.fullmatch(r"3\.\d{1,2}", text):
        raise argparse.ArgumentTypeError(f"expected a version such as 3.11, found {text!r}")
    return text
