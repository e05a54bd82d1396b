"""Write a folder so that it appears complete or not at all.

The work happens in a hidden sibling of the target. Only when everything is in place does it take
the target's name, in one atomic step; a process that dies at any moment leaves the target as it
was, and the next export removes what it left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shoal.graphs.contract import MANIFEST_FILE
from shoal.graphs.errors import ExportError
from shoal.graphs.output_files import advice_on

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_BLOCK_BYTES = 4096


@contextlib.contextmanager
def replaced_folder(target: Path, *, force: bool, keep: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes ``target`` when the block ends without an error.

    Args:
        target: where the folder shall appear; its parent is created if need be.
        force: replace a bundle that is there already.
        keep: begin with what an export that was stopped left behind, and leave it there again
            when this one is stopped.

    Raises:
        ExportError: the target exists (and is no bundle, or ``force`` is false), another export
            writes to it, or the file system refuses.
    """
    target = Path(os.path.abspath(target))
    check_target(target, force)
    work = target.with_name(f".{target.name}.exporting")
    with _parents(target), _locked(target):
        with writing(target):
            _clean_up_after_the_dead(work, target, keep=keep)
        is_done = False
        try:
            with writing(target):
                work.mkdir(exist_ok=keep)
            yield work
            check_target(target, force)
            with writing(target):
                _sync_files(work)
                _put_in_place(work, target)
            is_done = True
        finally:
            # Half a bundle or, after success, the one that was replaced.
            if is_done or not keep:
                shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Report what the file system refuses in terms of the bundle the user asked for.

    Raises:
        ExportError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"{target}: cannot be written: {error.strerror}; {advice_on(error)}"
        ) from error


@contextlib.contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Make the folders above ``target``; take back those that are empty in the end."""
    new = [folder for folder in target.parents if not folder.exists()]
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # from the first that is not empty
            for folder in new:
                folder.rmdir()


def check_target(target: Path, force: bool) -> None:
    """See that a bundle may be written to ``target``.

    Raises:
        ExportError: it is no folder, holds other files, or a bundle and ``force`` is false.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ExportError(f"{target}: is not a folder; choose another name for the bundle")
    if not target.exists() or not any(target.iterdir()):
        return
    if not (target / MANIFEST_FILE).is_file():
        raise ExportError(f"{target}: is a folder with other files in it; choose another name")
    if not force:
        raise ExportError(f"{target}: a bundle is there already; --force replaces it")


def check_place(target: Path) -> None:
    """See that a bundle can be written to ``target``, before anything is read for it.

    Raises:
        ExportError: the file system refuses, or no bundle could run there.
    """
    try:
        str(target.absolute()).encode()
    except UnicodeEncodeError as error:  # onnxruntime would refuse it
        raise ExportError(
            f"{target}: expected a path in UTF-8, found other bytes; choose another name"
        ) from error
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    with writing(target), tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_BLOCK_BYTES))
        file.flush()


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keep other exports away from ``target``; the lock dies with the process."""
    path = target.with_name(f".{target.name}.exporting.lock")
    while True:
        with writing(target):
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ExportError(f"{target}: another export is writing it; wait for it") from error
        if os.fstat(lock).st_nlink:  # else its last owner has just removed it: try again
            break
        os.close(lock)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _sync_files(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put_in_place(work: Path, target: Path) -> None:
    if not target.exists():
        work.rename(target)
        return
    if not any(target.iterdir()):
        target.rmdir()
        work.rename(target)
        return
    _exchange(work, target)


def _exchange(a: Path, b: Path) -> None:
    """Swap two folders atomically where the system can, else by two renames."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        result, code = -1, errno.ENOSYS
    else:
        result = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
        code = ctypes.get_errno()
    if result == 0:
        return
    if code not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(code, os.strerror(code))
    aside = _aside(b)
    b.rename(aside)
    try:
        a.rename(b)
    except OSError:
        aside.rename(b)
        raise
    aside.rename(a)


def _aside(target: Path) -> Path:
    """Where an old bundle waits while a new one takes its name in two steps."""
    return target.with_name(f".{target.name}.replaced")


def _clean_up_after_the_dead(work: Path, target: Path, *, keep: bool) -> None:
    """Remove what a killed export left behind; a bundle it had put aside comes back."""
    if not keep or (work / MANIFEST_FILE).exists():  # complete: the bundle that was replaced
        shutil.rmtree(work, ignore_errors=True)
    aside = _aside(target)
    if aside.is_dir() and not target.exists():
        aside.rename(target)
    shutil.rmtree(aside, ignore_errors=True)
