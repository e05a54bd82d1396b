"""What goes wrong with one request: what ends it alone, and what its sender is told."""

from __future__ import annotations

import traceback

from shoal.graphs.errors import InputError, ShoalError
from shoal.graphs.message_length import bounded_line
from shoal.graphs.panics import is_panic


class ClientGone(Exception):
    """The client that asked does not read the answer any more."""


def ends_only_its_request(error: BaseException) -> bool:
    """Whether others can still be served: not where whoever asked is gone, or the process ends."""
    if isinstance(error, ClientGone):
        return False
    return isinstance(error, Exception) or is_panic(error)


def answer_to(error: BaseException, number: int) -> str:
    """One line for the sender of request ``number``."""
    if isinstance(error, ShoalError):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = "out of memory; use a shorter context"
    else:
        text = (
            f"request {number} failed ({_name(error)}: {error}); this is a bug in shoal: report it "
            "with what was sent"
        )
    return bounded_line(text)


def log_of(error: BaseException) -> str:
    """One line for the log, without anything that was asked."""
    if isinstance(error, InputError):
        return "refused"
    if isinstance(error, ShoalError):
        return bounded_line(f"failed: {error}")
    if isinstance(error, MemoryError):
        return "failed: out of memory"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"failed: {_name(error)} in {last.filename}:{last.lineno}, this is a bug in shoal"


def _name(error: BaseException) -> str:
    return type(error).__name__
