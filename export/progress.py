"""Progress of an export on stderr: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_LINE_EVERY_SHARE = 0.1
_LINE_EVERY_S = 10.0


class ExportProgress:
    """Called with (bytes done, bytes in all, what is being done); use it as a context manager.

    Args:
        title: what the whole is called: "export", "verify".
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar = _bar() if sys.stderr.isatty() else None
        self._task = self._bar.add_task(title, total=None, what="") if self._bar else None
        self._started_s: float | None = None  # of the first bytes: preparing is not part of rates
        self._started_bytes = 0
        self._last_s = 0.0
        self._last_share = 0.0

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        else:
            _write_line(f"{self._title}: reading the checkpoint and building graphs")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, done_bytes: int, total_bytes: int, what: str) -> None:
        """Take the state of the work; shows it when there is something new to see."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done_bytes, total=total_bytes, what=what)
            return
        now_s = time.monotonic()
        if self._started_s is None:
            self._started_s, self._started_bytes, self._last_s = now_s, done_bytes, now_s
        share = done_bytes / total_bytes if total_bytes else 1.0
        is_due = share >= self._last_share + _LINE_EVERY_SHARE
        if is_due or now_s - self._last_s >= _LINE_EVERY_S or share >= 1 > self._last_share:
            self._last_s, self._last_share = now_s, share
            _write_line(self._line(done_bytes, total_bytes, now_s - self._started_s))

    def _line(self, done_bytes: int, total_bytes: int, passed_s: float) -> str:
        share = done_bytes / total_bytes if total_bytes else 1.0
        rate = (done_bytes - self._started_bytes) / passed_s if passed_s > 0 else 0.0
        line = f"{self._title}: {share:4.0%}, {done_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB"
        if rate > 0 and share < 1:
            line += f", {rate / 1e6:.1f} MB/s, {(total_bytes - done_bytes) / rate:.0f} s left"
        return line


def _write_line(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", style="dim", markup=False),
        console=Console(file=sys.stderr),
        transient=True,
    )
