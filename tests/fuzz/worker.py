"""The process in which cases of one format run, one after another.

It says on stdout, a JSON line each, which case it begins and what came of it. Whoever started it
watches the clock: a case that hangs or ends this process says nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from random import Random
from typing import IO, Any

from tests.fuzz.fuzz_format import FuzzFormat, Samples, Use
from tests.fuzz.guards import PeakMemory, WriteWatch, limit_process
from tests.fuzz.verdict import SOUND, Verdict, verdict_of

CASE_FOLDER, OUTSIDE_FOLDER, FOUND_FOLDER, NOISE_FILE = "case", "outside", "found", "stderr"


@dataclass(frozen=True)
class Orders:
    """What a worker is to do.

    Attributes:
        module: Of the format.
        checkpoint: See ``Samples``, as for the next two.
        bundle: As there.
        work: As there.
        scratch: Folder for the inputs of the cases.
        seed: Decides, with the format and the number of a case, what the case is.
        first: Number of the first case.
        count: How many cases.
        cpu_s: What a case may take of processor time.
        memory_bytes: What a case may take beyond what the process has before it.
        limit_bytes: What the process may take beyond that before memory is refused to it.
    """

    module: str
    checkpoint: str
    bundle: str
    work: str
    scratch: str
    seed: int
    first: int
    count: int
    cpu_s: float
    memory_bytes: int
    limit_bytes: int


def main() -> None:
    """Run the cases that the command line asks for."""
    orders = Orders(**json.loads(sys.argv[1]))
    scratch = Path(orders.scratch)
    events = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(scratch / NOISE_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
    sys.dont_write_bytecode = True
    samples = Samples(Path(orders.checkpoint), Path(orders.bundle), Path(orders.work))
    format_ = import_module(orders.module).make(samples)
    watch = WriteWatch(scratch / CASE_FOLDER, scratch / OUTSIDE_FOLDER)
    limit_process(orders.memory_bytes + orders.limit_bytes)
    for number in range(orders.first, orders.first + orders.count):
        use = _prepare(format_, orders, number)
        _tell(events, start=number)
        verdict, facts = _run_case(use, orders, watch)
        if verdict.kind not in SOUND:
            shutil.move(scratch / CASE_FOLDER, scratch / FOUND_FOLDER / str(number))
        _tell(events, end=number, **asdict(verdict), **facts)
    _tell(events, done=True)


def _prepare(format_: FuzzFormat, orders: Orders, number: int) -> Use:
    folder = Path(orders.scratch) / CASE_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return format_.prepare(Random(f"{orders.module}/{orders.seed}/{number}"), folder)


def _run_case(use: Use, orders: Orders, watch: WriteWatch) -> tuple[Verdict, dict[str, Any]]:
    noise = Path(orders.scratch) / NOISE_FILE
    said, memory, started_s = noise.stat().st_size, PeakMemory(), time.process_time()
    memory.start()
    watch.start()
    verdict = verdict_of(use)
    written = watch.stop()
    growth_bytes, cpu_s = memory.growth_bytes(), time.process_time() - started_s
    facts = {"cpu_s": cpu_s, "growth_bytes": growth_bytes}
    if written:
        verdict = Verdict("outside", "; ".join(written)[:2000])
    elif verdict.kind in SOUND and cpu_s > orders.cpu_s:
        verdict = Verdict("hang", f"{cpu_s:.1f} s of processor time; {verdict.detail}")
    elif verdict.kind in SOUND and growth_bytes > orders.memory_bytes:
        verdict = Verdict("memory", f"{growth_bytes >> 20} MB; {verdict.detail}")
    elif verdict.kind in SOUND and noise.stat().st_size > said:
        text = noise.read_bytes()[said:][:1000].decode("utf-8", "replace")
        verdict = Verdict("message", f"a library wrote to stderr: {text}; {verdict.detail}")
    return verdict, facts


def _tell(events: IO[str], **event: Any) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


if __name__ == "__main__":
    main()
