"""A guard for objects that belong to one thread at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from shoal.graphs.errors import InputError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def one_thread(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Refuse a call of a context's method while another thread is inside the same context.

    The context has a ``_lock``, a ``threading.RLock``.
    """

    @functools.wraps(method)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with held(args[0]._lock):  # type: ignore[attr-defined]
            return method(*args, **kwargs)

    return guarded


@contextmanager
def held(lock: threading.RLock) -> Iterator[None]:
    """Hold a context's lock, or refuse at once if another thread does.

    Raises:
        InputError: another thread is inside the context.
    """
    if not lock.acquire(blocking=False):
        raise InputError(
            "context: another thread is using it; give each thread a context of its own"
        )
    try:
        yield
    finally:
        lock.release()
