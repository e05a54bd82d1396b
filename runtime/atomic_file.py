"""Files that appear under their name when they are complete, or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from shoal.graphs.errors import RuntimeFailure
from shoal.graphs.output_files import advice_on, check_file_size, check_replaceable

_LONGEST_PREFIX = 100
"""Characters of a name that its temporary one repeats: the two need not fit into 255 bytes."""

_RANDOM_BYTES = 8
_BLOCK_BYTES = 4096


@contextmanager
def atomic_file(path: Path, what: str, size: int = 0) -> Iterator[IO[bytes]]:
    """Write to a file beside ``path`` that takes its name when the block is left without an error.

    Its temporary name is chosen at random, as process ids repeat between containers that share a
    volume. The file is locked while it is written, so that the next writer can tell what a killed
    one left behind and remove it.

    Args:
        path: where; a file that is there already is replaced then, and a link stays a link.
        what: what the file holds, for the message.
        size: bytes it will have, if that is known; a file system that cannot hold so many in one
            file then refuses before anything is written.

    Raises:
        RuntimeFailure: the disk is full or refuses. What was there before is still there.
    """
    with _refusals(path, what), _temporary_file(path) as (file, name, target):
        check_file_size(file.fileno(), size)
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(name, target)  # before the lock goes


def check_place(path: Path, what: str) -> None:
    """See that ``atomic_file`` can write there, before there is something to write.

    Raises:
        RuntimeFailure: it cannot.
    """
    with _refusals(path, what), _temporary_file(path) as (file, name, _):
        file.write(bytes(_BLOCK_BYTES))
        file.flush()
        name.unlink()


@contextmanager
def _refusals(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RuntimeFailure(
            f"{path}: {what} could not be written ({error.strerror or error}); {advice_on(error)}"
        ) from error


@contextmanager
def _temporary_file(path: Path) -> Iterator[tuple[IO[bytes], Path, Path]]:
    """A new file beside what ``path`` leads to, its name, and where ``path`` leads to."""
    target = Path(os.path.realpath(path))
    check_replaceable(target)
    beside = f".{target.name[:_LONGEST_PREFIX]}."
    _remove_leftovers(target.parent, beside)
    file, name = _new_file(target, beside)
    try:
        with file:
            yield file, name, target
    except BaseException:
        with suppress(OSError):
            name.unlink()
        raise


def _new_file(path: Path, beside: str) -> tuple[IO[bytes], Path]:
    while True:
        name = path.with_name(f"{beside}{secrets.token_hex(_RANDOM_BYTES)}.tmp")
        file = name.open("xb")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file, name
        file.close()  # taken for a leftover before it was locked


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
