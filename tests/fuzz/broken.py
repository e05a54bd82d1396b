"""Targets that are broken on purpose: what the fuzzer must notice, one kind for each number."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.fuzz.fuzz_format import AcceptedDamage, Samples, Use

from shoal.graphs.errors import InputError


class Panic(BaseException):
    """As a library in Rust raises it."""


def _raise(error: BaseException) -> None:
    raise error


def _turn_forever() -> None:
    while True:
        pass


def _take_memory() -> None:
    kept = bytearray(100 << 20)
    del kept


def _run_out_of_memory() -> None:
    _ = [bytearray(10 << 20) for _ in range(1000)]


def _connect() -> None:
    with suppress(OSError), socket.socket() as client:
        client.connect(("127.0.0.1", 9))


def _write_through_link(folder: Path) -> None:
    (folder / "link").symlink_to("../outside/canary")
    (folder / "link").write_text("written")


def _write_through_hard_link(folder: Path) -> None:
    os.link(folder.parent / "outside" / "canary", folder / "link")
    (folder / "link").write_text("written")


def kinds(folder: Path) -> list[tuple[str, Callable[[], object]]]:
    """Kinds of verdicts and what has them, in the order of the cases."""
    return [
        ("refused", lambda: _raise(InputError("a: expected b, found c; give b"))),
        ("accepted", lambda: (folder / "own").write_text("written")),
        ("bug", lambda: _raise(ValueError("no"))),
        ("traceback", lambda: _raise(Panic("called unwrap on None"))),
        ("crash", os.abort),
        ("crash", lambda: os._exit(0)),
        ("hang", _turn_forever),
        ("memory", _take_memory),
        ("memory", _run_out_of_memory),
        ("damage", lambda: _raise(AcceptedDamage("it is another one"))),
        ("outside", lambda: (folder.parent / "beside").write_text("written")),
        ("outside", lambda: (folder.parent / "outside" / "canary").unlink()),
        ("outside", lambda: (folder.parent / "outside" / "canary").rename(folder / "own")),
        ("outside", lambda: _write_through_link(folder)),
        ("outside", lambda: _write_through_hard_link(folder)),
        ("outside", lambda: subprocess.run(["true"], check=True)),
        ("outside", _connect),
        ("message", lambda: print("a second line", file=sys.stderr)),
        ("message", lambda: _raise(InputError("no"))),
        ("message", lambda: print("\x1b[2J", file=sys.stderr)),
        ("message", lambda: print("\x1b]52;c;aGk=\a")),
        ("message", lambda: os.write(2, b"thread panicked\n")),
    ]


class BrokenFormat:
    """Does what no format may do, one kind after another, in whatever process the next one is."""

    def __init__(self, samples: Samples) -> None:
        self._turn_file = samples.work / "turn"

    def prepare(self, rng: Random, folder: Path) -> Use:
        """See ``FuzzFormat``."""
        turn = int(self._turn_file.read_text()) if self._turn_file.exists() else 0
        self._turn_file.write_text(str(turn + 1))
        kind, use = kinds(folder)[turn]
        (folder / "what").write_text(kind)
        return use


def make(samples: Samples) -> BrokenFormat:
    """The format, from its samples."""
    return BrokenFormat(samples)
