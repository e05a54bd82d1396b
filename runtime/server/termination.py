"""Ending a service on SIGTERM, also while it computes.

Python runs a signal handler between two instructions of its own, so not before a graph that runs
has ended: with more busy processes than processors one step was seen to take 15 s, as a step waits
for threads that do not get a processor. So a thread waits for the signal too: it lets running
graphs fail at once, and ends the process by force if that was not enough.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from shoal.runtime.engine.session import interrupt_runs

GRACE_S = 4.0
"""Seconds between SIGTERM and the end by force."""

_STDERR = 2


class Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def raised_on_sigterm(grace_s: float = GRACE_S) -> Iterator[None]:
    """Raise ``Terminated`` in the block, which must run in the main thread, when SIGTERM comes.

    Graphs of this process cannot run any more then. Further SIGTERMs change nothing, not even
    after the block: the process is ending. If the block has not ended after ``grace_s`` seconds,
    the process ends with exit status 1.
    """
    has_come = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        if not has_come:
            has_come = True
            raise Terminated

    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    has_ended = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(read_end, has_ended, grace_s), name="sigterm", daemon=True
    )
    before = signal.signal(signal.SIGTERM, stop)
    waked_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        has_ended.set()
        signal.set_wakeup_fd(waked_before)
        os.close(write_end)
        watcher.join()
        signal.signal(signal.SIGTERM, signal.SIG_IGN if has_come else before)


def leave() -> NoReturn:
    """End the process with exit status 0, without taking the interpreter and the model apart.

    That takes five times as long as all else that SIGTERM leads to, which on a machine with too
    much to do is seconds.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _watch(read_end: int, has_ended: threading.Event, grace_s: float) -> None:
    """Wait for the number of a signal, which the system writes into the pipe, or for its end."""
    with open(read_end, "rb", buffering=0) as signals:
        while numbers := signals.read(64):
            if signal.SIGTERM in numbers:
                interrupt_runs()
                if not has_ended.wait(grace_s):
                    _end_by_force(grace_s)
                return


def _end_by_force(grace_s: float) -> None:
    line = f"error: still busy {grace_s:.0f} s after SIGTERM; ended by force\n"
    try:
        if select.select([], [_STDERR], [], 0)[1]:  # it may be full: what the process waits for
            os.write(_STDERR, line.encode())
    finally:
        os._exit(1)
