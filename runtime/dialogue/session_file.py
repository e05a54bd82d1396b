"""The file of a dialogue, which one process at a time may continue."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime.engine.context import Context


@contextmanager
def open_session(path: Path) -> Iterator[SessionFile]:
    """Keep a file for this process until the block ends.

    Args:
        path: the file; without one an empty file keeps the place until something is saved.

    Raises:
        InputError: another process has it, or it cannot be opened.
    """
    session = SessionFile(path)
    try:
        yield session
    finally:
        session.close()


class SessionFile:
    """A file that is locked while it is open, so that no other process answers the same turn.

    Saving replaces the file, so a lock is of the file that had the name when it was taken: whoever
    has a lock checks before it replaces anything that the name still stands for that file.

    Args:
        path: see ``open_session``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _lock(path)

    @property
    def is_new(self) -> bool:
        """Whether nothing has been saved yet."""
        return os.fstat(self._descriptor).st_size == 0

    def save(self, context: Context, note: dict[str, Any]) -> None:
        """Replace what is saved.

        Raises:
            RuntimeFailure: it cannot be written, or another process has replaced it.
        """
        if not self._has_name():
            raise RuntimeFailure(
                f"{self.path}: another process has replaced this session, so this turn is not "
                "kept; start again to go on from what is there"
            )
        context.save(self.path, note)
        with suppress(InputError):  # another process was faster: the next turn is refused
            saved = _lock(self.path)
            os.close(self._descriptor)
            self._descriptor = saved

    def close(self) -> None:
        """Let others have the file; one in which nothing was saved is removed."""
        if self.is_new and self._has_name():
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _has_name(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return True  # removed to start anew: nothing can be lost


def _lock(path: Path) -> int:
    """Open and lock the file that has the name; it is made if there is none."""
    while True:
        descriptor = _open(path)
        try:
            with suppress(OSError):  # a file system without locks
                _refuse_if_locked(descriptor, path)
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # replaced or removed in between


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(
            f"{path}: the session cannot be read ({error.strerror}); check the path"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: expected a regular file for the session; name another")
    return descriptor


def _refuse_if_locked(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"{path}: another process has this session open; end that or name another file"
        ) from error
