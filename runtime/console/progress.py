"""Progress of long work on stderr: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from shoal.runtime.console.report import progress_line
from shoal.runtime.console.visible import visible

Unit = Literal["bytes", "tokens"]

READING_CHECKPOINT = "reading the checkpoint and building graphs"
"""What an export, or a comparison with one, does before bytes are counted."""

_LINE_EVERY_S = 10.0


class WorkProgress:
    """Called with (done, in all, what is being done); use it as a context manager.

    Args:
        title: what the whole is called: "export", "eval".
        unit: what is counted.
        every_share: in a log, also write a line whenever this share more is done, and at the end;
            without it a line comes every ten seconds, and none about work that takes less.
        opening: in a log, what the first line says is going on before anything is counted.
    """

    def __init__(
        self,
        title: str,
        unit: Unit = "bytes",
        *,
        every_share: float | None = None,
        opening: str = "",
    ) -> None:
        self._title = title
        self._unit: Unit = unit
        self._every_share = every_share
        self._opening = opening
        self._bar = _bar(unit) if sys.stderr.isatty() else None
        self._task = self._bar.add_task(title, total=None, what="") if self._bar else None
        self._started_s: float | None = None  # of the first call: preparing is not part of rates
        self._started_at = 0
        self._last_s = 0.0
        self._last_share = 0.0

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        elif self._opening:
            progress_line(f"{self._title}: {self._opening}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, done: int, total: int, what: str) -> None:
        """Take the state of the work; shows it when there is something new to see."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, what=visible(what))
            return
        now_s = time.monotonic()
        if self._started_s is None:
            self._started_s, self._started_at, self._last_s = now_s, done, now_s
        share = done / total if total else 1.0
        if self._is_due(share, now_s):
            self._last_s, self._last_share = now_s, share
            progress_line(self._line(done, total, now_s - self._started_s, what))

    def _is_due(self, share: float, now_s: float) -> bool:
        if now_s - self._last_s >= _LINE_EVERY_S:
            return True
        if self._every_share is None:
            return False
        return share >= self._last_share + self._every_share or share >= 1 > self._last_share

    def _line(self, done: int, total: int, passed_s: float, what: str) -> str:
        share = done / total if total else 1.0
        rate = (done - self._started_at) / passed_s if passed_s > 0 else 0.0
        goes_on = rate > 0 and share < 1
        parts = [f"{self._title}: {share:4.0%}"]
        if self._unit == "bytes":
            parts.append(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")
            parts += [f"{rate / 1e6:.1f} MB/s"] if goes_on else []
        else:
            parts.append(f"{done} of {total} tokens")
        parts += [f"{(total - done) / rate:.0f} s left"] if goes_on else []
        return ", ".join(parts if self._unit == "bytes" else [*parts, what])


def _bar(unit: Unit) -> Progress:
    amount: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), TextColumn("tokens"))
    if unit == "bytes":
        amount = (DownloadColumn(), TransferSpeedColumn())
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        *amount,
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", style="dim", markup=False),
        console=Console(file=sys.stderr),
        transient=True,
    )
