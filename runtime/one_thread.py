"""A guard for objects that belong to one thread at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
        lock = args[0]._lock  # type: ignore[attr-defined]
        if not lock.acquire(blocking=False):
            raise InputError(
                "context: another thread is using it; give each thread a context of its own"
            )
        try:
            return method(*args, **kwargs)
        finally:
            lock.release()

    return guarded
