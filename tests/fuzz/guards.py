"""What holds a case: limits on memory and files, and a watch over what it writes where."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_LARGEST_FILE_BYTES = 1 << 30
_CANARY = b"nobody writes here\n"
# Audit events that change something: which of their arguments are paths, and the folder of each.
_PATHS = {
    **dict.fromkeys(("os.remove", "os.rmdir"), ((0, 1),)),
    **dict.fromkeys(("os.mkdir", "os.chmod"), ((0, 2),)),
    **dict.fromkeys(("os.chown", "os.utime"), ((0, 3),)),
    **dict.fromkeys(("os.truncate", "os.setxattr"), ((0, None),)),
    **dict.fromkeys(("os.rename", "os.link"), ((0, 2), (1, 3))),
    "os.symlink": ((1, 2),),
}
_REACHING_OUT = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NOT_FOLLOWED = os.O_NOFOLLOW | os.O_EXCL


def limit_process(more_bytes: int) -> None:
    """Let this process have so much more memory than now, large files and no core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE_BYTES, _LARGEST_FILE_BYTES))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class PeakMemory:
    """How far this process has grown since the last look."""

    def start(self) -> None:
        """Forget earlier peaks."""
        with suppress(OSError):  # without it the peak of all cases so far is what counts
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _status_kb("VmRSS")

    def growth_bytes(self) -> int:
        """The most memory since ``start`` beyond what there was then."""
        return max(0, _status_kb("VmHWM") - self._before) * 1024


def _status_kb(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0


class WriteWatch:
    """Notes every change that is made outside a folder, and every process or connection.

    Two witnesses: what Python is about to do, and files beside the folder, for links and libraries.

    Args:
        folder: where writing is allowed.
        outside: a folder for files that nobody may touch; it is made here.
    """

    def __init__(self, folder: Path, outside: Path) -> None:
        self._folder = os.path.realpath(folder)
        self._outside = outside
        self._notes: list[str] = []
        self._watches = False
        self.canary = outside / "canary"
        self._make_canary()
        sys.addaudithook(self._hook)  # stays until the process ends

    def start(self) -> None:
        """Watch from now on."""
        self._notes.clear()
        self._watches = True

    def stop(self) -> list[str]:
        """What happened since ``start``."""
        self._watches = False
        if self._seen() != self._sound:
            self._notes.append(f"changed files in {self._outside}")
            self._make_canary()
        return list(self._notes)

    def _make_canary(self) -> None:
        self._outside.mkdir(exist_ok=True)
        for path in self._outside.iterdir():
            path.unlink()
        self.canary.write_bytes(_CANARY)
        self._sound = self._seen()

    def _seen(self) -> list[tuple[str, bytes, int]]:
        found = sorted(self._outside.iterdir())
        return [(path.name, path.read_bytes(), path.stat().st_mode) for path in found]

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._watches:
            return
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & _WRITING:
                self._check(event, path, None, follows=not flags & _NOT_FOLLOWED)
        elif event in _PATHS:
            for path, folder in _PATHS[event]:
                self._check(event, args[path], args[folder] if folder else None)
        elif event in _REACHING_OUT:
            self._notes.append(f"{event}: {args!a}"[:500])

    def _check(self, event: str, given: Any, folder: int | None, *, follows: bool = False) -> None:
        if not isinstance(given, str | bytes | os.PathLike):
            return  # an open file
        self._watches = False  # looking at paths is not to be watched
        path = os.fsdecode(given)
        if folder is not None and folder >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        head, tail = os.path.split(path)
        found = os.path.realpath(path if follows else head or ".")
        found = found if follows else os.path.join(found, tail)
        self._watches = True
        if found != os.devnull and not (found + os.sep).startswith(self._folder + os.sep):
            self._notes.append(f"{event}: {found!a}")
