"""Files that appear under their name when they are complete, or not at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from shoal.graphs.errors import RuntimeFailure

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LONGEST_PREFIX = 100
"""Characters of a name that its temporary one repeats: the two need not fit into 255 bytes."""

_RANDOM_BYTES = 8


@contextmanager
def atomic_file(path: Path, what: str) -> Iterator[IO[bytes]]:
    """Write to a file beside ``path`` that takes its name when the block is left without an error.

    Its temporary name is chosen at random, as process ids repeat between containers that share a
    volume. The file is locked while it is written, so that the next writer can tell what a killed
    one left behind and remove it.

    Args:
        path: where; a file that is there already is replaced then.
        what: what the file holds, for the message.

    Raises:
        RuntimeFailure: the disk is full or refuses. What was there before is still there.
    """
    beside = f".{path.name[:_LONGEST_PREFIX]}."
    try:
        _remove_leftovers(path.parent, beside)
        file, name = _new_file(path, beside)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(name, path)  # before the lock goes
        except BaseException:
            with suppress(OSError):
                name.unlink()
            raise
    except OSError as error:
        raise RuntimeFailure(
            f"{path}: {what} could not be written ({error.strerror or error}); {_advice(error)}"
        ) from error


def _new_file(path: Path, beside: str) -> tuple[IO[bytes], Path]:
    while True:
        name = path.with_name(f"{beside}{secrets.token_hex(_RANDOM_BYTES)}.tmp")
        file = name.open("xb")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file, name
        file.close()  # taken for a leftover before it was locked


def _advice(error: OSError) -> str:
    if error.errno in _FULL:
        return "free disk space or choose another place"
    if error.errno == errno.EFBIG:
        return "files of this size are not allowed there (FAT32 ends at 4 GiB); choose another disk"
    if error.errno == errno.ENOENT:
        return "make the folder or choose another place"
    return "make it writable or choose another place"


def _remove_leftovers(folder: Path, beside: str) -> None:
    """Remove files of writers that are gone; those of others stay."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    random = "[0-9a-f]" * (2 * _RANDOM_BYTES)
    for name in glob.iglob(f"{glob.escape(beside)}{random}.tmp", root_dir=folder):
        with suppress(OSError):
            descriptor = os.open(folder / name, flags)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(folder / name)
            finally:
                os.close(descriptor)
