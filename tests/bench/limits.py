"""The machine's limits: memory read bandwidth and int8 multiply-adds per second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.bench.processes import run

SOURCE = Path(__file__).with_name("limits.cc")
_MEGABYTES = 1000


def build(work: Path) -> Path:
    """Compile the program that measures them, for exactly this processor."""
    program = work / "limits"
    flags = ["-std=c++17", "-O3", "-march=native", "-pthread"]
    run(["c++", *flags, str(SOURCE), "-o", str(program)])
    return program


def measure(program: Path, threads: int, megabytes: int = _MEGABYTES) -> dict[str, Any]:
    """Bytes and multiply-adds per second on that many threads, and the instructions taken."""
    found: dict[str, Any] = json.loads(run([str(program), str(threads), str(megabytes)]))
    return found
