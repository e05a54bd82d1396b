"""``shoal export`` in a process of its own that can be killed, forked from one that is warm.

Tracing takes most of an export and is the same each time. The fork server traces once (by importing
export_process_warm) and every export forked from it finds the graphs in ``GRAPHS``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from shoal.export import pipeline, plan
from shoal.export.writing import folder
from shoal.runtime.commands.cli import main
from shoal.runtime.console.progress import WorkProgress

GRAPHS: list[Any] = []

POINTS = (
    "begun",
    "graphs built",
    "small files written",
    "first weights written",
    "half of the weights written",
    "all weights written",
    "manifest written",
    "before the rename",
    "after the rename",
)


def start_export(
    checkpoint: Path,
    target: Path,
    *,
    point: str = "",
    kill: int = 0,
    slow_s: float = 0.0,
    options: tuple[str, ...] = ("--force", "--no-fidelity"),
) -> BaseProcess:
    """Start an export.

    Args:
        checkpoint: what to export.
        target: where to; an existing bundle is replaced.
        point: one of ``POINTS`` or a share of the weights written, such as "0.25", at which the
            process sends itself a signal.
        kill: the signal.
        slow_s: time to wait after each piece of the weights.
        options: of the command.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.acceptance.export_process_warm"])
    process = context.Process(
        target=_export, args=(str(checkpoint), str(target), point, kill, slow_s, options)
    )
    process.start()
    return process


def _export(
    checkpoint: str, target: str, point: str, kill: int, slow_s: float, options: tuple[str, ...]
) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    # Tests may run in the background or under nohup, where these are ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    hooks = _Hooks(point, kill, slow_s)
    if GRAPHS:
        setattr(plan, "build_graphs", lambda *args, **kwargs: GRAPHS[0])  # noqa: B010
    hooks.around(plan, "build_graphs", "begun", "graphs built")
    hooks.around(pipeline, "_write_small_files", "", "small files written")
    hooks.around(pipeline, "_write_manifest", "all weights written", "manifest written")
    hooks.around(folder, "_put_in_place", "before the rename", "after the rename")
    hooks.around_progress()
    sys.exit(main(["export", checkpoint, target, *options]))


class _Hooks:
    def __init__(self, point: str, kill: int, slow_s: float) -> None:
        self._point, self._kill, self._slow_s = point, kill, slow_s

    def reach(self, point: str) -> None:
        if point and point == self._point:
            os.kill(os.getpid(), self._kill)

    def around(self, module: Any, name: str, before: str, after: str) -> None:
        inner: Callable[..., Any] = getattr(module, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            self.reach(before)
            result = inner(*args, **kwargs)
            self.reach(after)
            return result

        setattr(module, name, outer)

    def around_progress(self) -> None:
        inner = WorkProgress.__call__

        def outer(shown: Any, done_bytes: int, total_bytes: int, what: str) -> None:
            inner(shown, done_bytes, total_bytes, what)
            self.reach("first weights written")
            if 2 * done_bytes >= total_bytes:
                self.reach("half of the weights written")
            if self._point[:1] == "0" and done_bytes >= float(self._point) * total_bytes:
                self.reach(self._point)
            time.sleep(self._slow_s)

        setattr(WorkProgress, "__call__", outer)  # noqa: B010
