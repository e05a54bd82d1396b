"""Progress of an evaluation on stderr: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from shoal.runtime.console.report import progress_line

_LINE_EVERY_S = 10.0


class EvalProgress:
    """Called with (tokens read, tokens in all, the model); use it as a context manager."""

    def __init__(self) -> None:
        self._bar = _bar() if sys.stderr.isatty() else None
        self._task = self._bar.add_task("eval", total=None, what="") if self._bar else None
        self._started_s: float | None = None
        self._last_s = 0.0

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
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
        """Take the state of the work; shows it when it is time to."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, what=what)
            return
        now_s = time.monotonic()
        if self._started_s is None:
            self._started_s = self._last_s = now_s
        if now_s - self._last_s >= _LINE_EVERY_S:
            self._last_s = now_s
            left_s = (now_s - self._started_s) * (total - done) / done
            progress_line(
                f"eval: {done / total:4.0%}, {done} of {total} tokens, {left_s:.0f} s left, {what}"
            )


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", style="dim", markup=False),
        console=Console(file=sys.stderr),
        transient=True,
    )
