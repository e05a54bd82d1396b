"""The standard streams of the command line, in whatever state they were handed to it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from shoal.graphs.errors import RuntimeFailure
from shoal.graphs.output_files import advice_on
from shoal.runtime.console.visible import visible, visible_on_terminals

_NAMES = ("stdin", "stdout", "stderr")


class ClosedStream(io.TextIOWrapper):
    """Stands for a stream that was closed from the start: nothing to read, and nobody reads it."""

    def __init__(self) -> None:
        super().__init__(open(os.devnull, "r+b"), encoding="utf-8")  # noqa: SIM115


def open_streams() -> None:
    """Make the standard streams usable, whatever whoever started the program has closed.

    A descriptor that is closed would be given to the next file that is opened, which would then
    receive what is meant for the stream. So it is taken, by one that refuses the stream's use.
    Source: GNU gnulib, stdopen.c.
    """
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDONLY if number else os.O_WRONLY)
            os.set_inheritable(null, True)
        if getattr(sys, name) is None:
            setattr(sys, name, ClosedStream())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model writes more than Latin-1 can show


def is_closed(stream: TextIO) -> bool:
    """Whether a standard stream was closed when the program began."""
    return isinstance(stream, ClosedStream)


def write_result(text: str) -> None:
    """Write to stdout: as it is to files and pipes, with control characters shown on terminals.

    Raises:
        RuntimeFailure: the disk is full or refuses.
        BrokenPipeError: whoever read it went away.
    """
    write_styled(visible_on_terminals(text, sys.stdout))


def write_styled(text: str) -> None:
    """Write to stdout what is fit for terminals already; see ``write_result``."""
    with _refusals():
        sys.stdout.write(text)


def flush_result() -> None:
    """Send what was written to stdout on its way; see ``write_result``."""
    with _refusals():
        sys.stdout.flush()


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritten(error) from error


def unwritten(error: OSError) -> RuntimeFailure:
    """What to say when stdout refuses."""
    return RuntimeFailure(f"stdout: {error.strerror or error}; {advice_on(error)}")


def write_message(text: str) -> None:
    """Write a line to stderr, control characters shown; a log that takes no more ends no work.

    Raises:
        BrokenPipeError: whoever read it went away.
    """
    encoding = sys.stderr.encoding or "utf-8"
    line = visible(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:
        settle(sys.stderr)


def settle(stream: TextIO) -> OSError | None:
    """Flush a stream; what it refuses is dropped, or the flush at exit would fail once more.

    Returns:
        Why it refuses, None if it does not.
    """
    try:
        stream.flush()
    except OSError as error:
        _point_at_null(stream)
        return error
    return None


def _point_at_null(stream: TextIO) -> None:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # no file behind it, as in tests
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
