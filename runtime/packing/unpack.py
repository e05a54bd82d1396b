"""Taking a pack apart: every byte is checked, and a stopped unpacking continues where it was.

Files are written to a hidden folder beside the target, which takes the target's name when all of
them are complete. A file that is not complete yet ends in ``.part``; the next attempt compares it
with the pack and continues where the two differ, whatever a loss of power left.

Anybody may have prepared a folder of that name. What is found in it is used only if it is this
user's own, closed to writers, no link of any kind, part of the pack, and has the pack's bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from shoal.graphs.contract import MANIFEST_FILE
from shoal.graphs.errors import BundleError, InputError, RuntimeFailure
from shoal.graphs.output_files import advice_on, check_file_size
from shoal.runtime.bundle import Bundle
from shoal.runtime.machine.requirements import check_machine
from shoal.runtime.packing.pack import BLOCK_BYTES, PackProgress, check_space
from shoal.runtime.packing.pack_format import (
    BUNDLE_FOLDER,
    COPY_AGAIN,
    Index,
    Part,
    check_headers,
    read_index,
)

_UNFINISHED = ".part"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def unpack(pack: Path, target: Path, progress: PackProgress | None = None) -> Bundle:
    """Make a bundle folder of a pack.

    Args:
        pack: the file, as ``shoal pack`` wrote it. Wheels in it are checked, not unpacked.
        target: the folder to make; it appears when the bundle is complete and checked.
        progress: called about every 4 MB.

    Raises:
        InputError: the target exists, or a path leads nowhere.
        BundleError: the pack is damaged; the message names the part.
        RuntimeFailure: the disk is full or refuses, or another process unpacks the same.
    """
    check_machine()
    if os.path.lexists(target):
        raise InputError(f"{target}: exists already; remove it or choose another name")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent}: no such folder; make it or choose another place")
    with _open_pack(pack) as file:
        index = read_index(file, pack, os.fstat(file.fileno()).st_size)
        check_headers(file, index, pack)
        staging = target.parent / f".{target.name[:100]}.{index.pack_id[:16]}.unpacking"
        try:
            with _locked_folder(staging):
                _Unpacking(pack, file, index, staging, progress).run()
                _check_bundle(pack, index, staging)
                os.rename(staging, target)
            _sync_folder(target.parent)
        except OSError as error:
            raise RuntimeFailure(
                f"{target}: could not be unpacked ({error.strerror or error}); {advice_on(error)}, "
                "then run the command again to continue"
            ) from error
    return Bundle.open(target)


class _Unpacking:
    """One attempt."""

    def __init__(
        self,
        pack: Path,
        file: IO[bytes],
        index: Index,
        staging: Path,
        progress: PackProgress | None,
    ) -> None:
        self._pack = pack
        self._file = file
        self._index = index
        self._staging = staging
        self._progress = progress
        self._done_bytes = 0
        self._total_bytes = sum(part.size for part in index.parts)

    def run(self) -> None:
        """Write what is not there yet, and read what is not to be written."""
        self._check_what_is_there()
        missing = [part for part in self._index.of(BUNDLE_FOLDER) if not self._is_there(part)]
        written = sum(max(0, self._size_of(part.file_name + _UNFINISHED)) for part in missing)
        check_space(self._staging.parent, max(0, sum(part.size for part in missing) - written))
        for part in self._index.parts:
            if part.folder != BUNDLE_FOLDER:
                self._copy(part, None)
            elif part in missing:
                self._write(part)
            else:
                self._report(part.size, part)
        _sync_folder(self._staging)

    def _check_what_is_there(self) -> None:
        """Refuse a folder with anything in it that an attempt of this user would not have left."""
        names = {part.file_name for part in self._index.of(BUNDLE_FOLDER)}
        with os.scandir(self._staging) as entries:
            for entry in entries:
                if entry.name.removesuffix(_UNFINISHED) not in names:
                    raise _not_ours(self._staging, f"{entry.name!a}, no part of the pack")
                if not _is_own_file(entry.stat(follow_symlinks=False)):
                    raise _not_ours(self._staging, f"{entry.name}, a link or open to others")

    def _is_there(self, part: Part) -> bool:
        """Whether a file is complete; one with other bytes is removed."""
        path = self._staging / part.file_name
        if self._size_of(part.file_name) == part.size:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == part.sha256:
                    return True
        path.unlink(missing_ok=True)
        return False

    def _size_of(self, name: str) -> int:
        try:
            found = os.lstat(self._staging / name)
        except FileNotFoundError:
            return -1
        return found.st_size if stat.S_ISREG(found.st_mode) else -1

    def _write(self, part: Part) -> None:
        unfinished = self._staging / (part.file_name + _UNFINISHED)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(unfinished, flags, 0o644), "r+b") as target:
            if not _is_own_file(os.fstat(target.fileno())):
                raise _not_ours(self._staging, f"{unfinished.name}, a link or open to others")
            check_file_size(target.fileno(), part.size)
            try:
                self._copy(part, target)
            except BundleError:
                target.truncate(0)  # nothing of it is to be believed
                raise
            target.truncate(part.size)
            target.flush()
            os.fsync(target.fileno())
        os.rename(unfinished, self._staging / part.file_name)

    def _copy(self, part: Part, target: IO[bytes] | None) -> None:
        """Read a part, check it, and write what the target does not have already."""
        digest, left, goes_on = hashlib.sha256(), part.size, target is not None
        self._file.seek(self._index.offsets()[part.name])
        while left:
            block = self._file.read(min(BLOCK_BYTES, left))
            if not block:
                break
            digest.update(block)
            if target is not None:
                place = target.tell()
                if goes_on and target.read(len(block)) != block:
                    goes_on = False
                    target.seek(place)
                    target.truncate()
                if not goes_on:
                    target.write(block)
            left -= len(block)
            self._report(len(block), part)
        if digest.hexdigest() != part.sha256:
            raise BundleError(f"{self._pack}: {part.name}: sha256 does not match; {COPY_AGAIN}")

    def _report(self, count: int, part: Part) -> None:
        self._done_bytes += count
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes, part.name)


@contextmanager
def _open_pack(pack: Path) -> Iterator[IO[bytes]]:
    try:
        if not stat.S_ISREG(pack.stat().st_mode):
            raise InputError(f"{pack}: expected a file that `shoal pack` made; check the path")
        file = pack.open("rb")
    except OSError as error:
        raise InputError(
            f"{pack}: cannot be read ({error.strerror or error}); check the path"
        ) from error
    with file:
        yield file


def _is_own_file(found: os.stat_result) -> bool:
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_nlink == 1
        and found.st_uid == os.geteuid()
        and not found.st_mode & _OTHERS_MAY_WRITE
    )


def _not_ours(folder: Path, what: str) -> RuntimeFailure:
    return RuntimeFailure(
        f"{folder}: expected what an earlier attempt left, found {what}; remove the folder, or "
        "unpack where nobody else may write"
    )


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """A folder that exists, that no other user may write to, and that this process holds."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o755)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_MAY_WRITE:
            raise _not_ours(folder, "a folder that others may write to")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeFailure(
                f"{folder}: another process unpacks the same pack; wait for it or stop it"
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):  # nothing to go on from, or it has its name by now
                folder.rmdir()
    finally:
        os.close(descriptor)


def _check_bundle(pack: Path, index: Index, staging: Path) -> None:
    """What was unpacked is a bundle, the whole of it and nothing else.

    Raises:
        BundleError: it is not; nothing is kept of it then, for another attempt would end here too.
    """
    sums = {part.file_name: part.sha256 for part in index.of(BUNDLE_FOLDER)}
    del sums[MANIFEST_FILE]
    try:
        manifest = Bundle.open(staging).manifest
        reason = "its files are not those of its manifest"
        is_whole = {name: info.sha256 for name, info in manifest.files.items()} == sums
    except BundleError as error:
        is_whole, reason = False, str(error)
    if not is_whole:
        shutil.rmtree(staging)
        raise BundleError(f"{pack}: holds no usable bundle ({reason}); pack it again")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
