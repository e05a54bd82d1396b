"""Writing a pack: see pack_format.py for what it is."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shoal.graphs.contract import MANIFEST_FILE
from shoal.graphs.errors import BundleError, InputError, RuntimeFailure
from shoal.runtime.atomic_file import atomic_file, check_place
from shoal.runtime.bundle import Bundle
from shoal.runtime.packing.pack_format import (
    BUNDLE_FOLDER,
    INDEX_NAME,
    WHEEL_FOLDER,
    Index,
    Part,
    end,
    header,
    padding,
)

BLOCK_BYTES = 4 << 20
_WHAT = "the pack"

PackProgress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all and the name of the part."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    part: Part
    path: Path


def write_pack(
    bundle: Bundle, target: Path, wheels: Sequence[Path] = (), progress: PackProgress | None = None
) -> Index:
    """Write a pack; it appears under its name when it is complete and on the disk.

    Args:
        bundle: what to pack. Every byte is compared with its manifest on the way.
        target: the file to make.
        wheels: wheel files to put in.
        progress: called about every 4 MB.

    Raises:
        InputError: the target exists, or a wheel cannot be packed under its name.
        BundleError: the bundle is damaged.
        RuntimeFailure: the disk is full or refuses.
    """
    check_target(target)
    sources = [*_bundle_sources(bundle), *(_wheel_source(wheel) for wheel in wheels)]
    index = Index(parts=tuple(source.part for source in sources))
    check_space(target.parent, index.pack_bytes())
    with atomic_file(target, _WHAT, index.pack_bytes()) as file:
        _write(file, index, sources, progress)
    return index


def check_target(target: Path) -> None:
    """Refuse a place for a pack before there is one.

    Raises:
        InputError: there is something already, or no folder.
        RuntimeFailure: the disk is full or refuses.
    """
    if os.path.lexists(target):
        raise InputError(f"{target}: exists already; remove it or choose another name")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent}: no such folder; make it or choose another place")
    check_place(target, _WHAT)


def check_space(folder: Path, needed_bytes: int) -> None:
    """Refuse before hours of copying what will not fit.

    Raises:
        RuntimeFailure: the disk has less room.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise RuntimeFailure(
            f"{folder}: expected room for {needed_bytes} bytes, found {free_bytes}; free disk "
            "space or choose another place"
        )


def _bundle_sources(bundle: Bundle) -> list[_Source]:
    manifest = bundle.path(MANIFEST_FILE)
    sources = [_source(BUNDLE_FOLDER, manifest)]
    for name, info in bundle.manifest.files.items():
        part = Part(name=f"{BUNDLE_FOLDER}/{name}", size=info.size, sha256=info.sha256)
        sources.append(_Source(part=part, path=bundle.path(name)))
    return sources


def _wheel_source(wheel: Path) -> _Source:
    if not wheel.name.isascii() or wheel.suffix != ".whl":
        raise InputError(f"{wheel}: expected a wheel, NAME.whl in ASCII; rename it")
    try:
        return _source(WHEEL_FOLDER, wheel)
    except OSError as error:
        raise InputError(f"{wheel}: cannot be read ({error.strerror or error})") from error


def _source(folder: str, path: Path) -> _Source:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return _Source(part=Part(name=f"{folder}/{path.name}", size=size, sha256=digest), path=path)


def _write(
    file: IO[bytes], index: Index, sources: list[_Source], progress: PackProgress | None
) -> None:
    content = index.to_bytes()
    file.write(header(INDEX_NAME, len(content)) + content + padding(len(content)))
    total, done = sum(part.size for part in index.parts), 0
    for source in sources:
        part, digest = source.part, hashlib.sha256()
        file.write(header(part.name, part.size))
        with source.path.open("rb") as reader:
            left = part.size
            while block := reader.read(min(BLOCK_BYTES, left)):
                file.write(block)
                digest.update(block)
                left -= len(block)
                done += len(block)
                if progress is not None:
                    progress(done, total, part.name)
        if digest.hexdigest() != part.sha256:
            raise BundleError(
                f"{source.path}: sha256 does not match the manifest: changed since the export; "
                "copy or export the bundle again"
            )
        file.write(padding(part.size))
    file.write(end())
