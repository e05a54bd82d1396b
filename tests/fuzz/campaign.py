"""Runs cases of a format in worker processes, and starts another one where a case ends the first.

A hang is a case that takes ``Limits.cpu_s`` seconds of processor time, or twenty times as long by
the clock, so that a busy machine makes none.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.fuzz_format import Samples
from tests.fuzz.verdict import SOUND, Verdict
from tests.fuzz.worker import CASE_FOLDER, FOUND_FOLDER, NOISE_FILE, Orders

ROOT = Path(__file__).parents[2]
_CLOCK_FACTOR = 20
_START_S = 300.0  # to get ready: the reference model may be run
_LOOK_EVERY_S = 0.5
_KEPT_OF_EACH = 3


@dataclass(frozen=True)
class Limits:
    """What a case may take."""

    cpu_s: float = 10.0
    memory_bytes: int = 512 << 20
    limit_bytes: int = 2 << 30


@dataclass(frozen=True)
class Plan:
    """Which cases are run.

    Attributes:
        module: Of the format.
        samples: What is sound.
        scratch: Folder for inputs; it is emptied.
        findings: Folder for what is found; None to keep nothing.
        seed: Of all cases.
        first: Number of the first.
        count: How many, at most.
        deadline_s: Of ``time.monotonic``, when no further case is begun.
        limits: Of each case.
    """

    module: str
    samples: Samples
    scratch: Path
    findings: Path | None = None
    seed: int = 1
    first: int = 0
    count: int = 100
    deadline_s: float = float("inf")
    limits: Limits = Limits()

    @property
    def name(self) -> str:
        """Of the format."""
        return self.module.rpartition(".")[2]


@dataclass
class Tally:
    """What came of a plan."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    slowest_s: float = 0.0
    most_bytes: int = 0

    @property
    def cases(self) -> int:
        """How many were run."""
        return self.counts.total()


class Campaign:
    """Carries out a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._next = plan.first
        self._kept: Counter[str] = Counter()
        self._tally = Tally()

    def run(self) -> Tally:
        """Run all cases."""
        plan, started_s = self._plan, time.monotonic()
        shutil.rmtree(plan.scratch, ignore_errors=True)
        (plan.scratch / FOUND_FOLDER).mkdir(parents=True)
        end = plan.first + plan.count
        while self._next < end and time.monotonic() < plan.deadline_s:
            self._run_worker(end - self._next)
        self._tally.wall_s = time.monotonic() - started_s
        return self._tally

    def _run_worker(self, count: int) -> None:
        case: int | None = None
        with self._worker(count) as worker:
            for event in _events(worker, self._plan.limits, self._plan.deadline_s):
                if "start" in event:
                    case = event["start"]
                elif "end" in event:
                    self._next, case = event["end"] + 1, None
                    self._note(event["end"], Verdict(event["kind"], event["detail"]), event)
                elif "done" in event or "late" in event:
                    return
                elif case is None:
                    raise RuntimeError(f"{self._plan.module}: no case to run: {self._noise()}")
                else:
                    self._next = case + 1
                    self._note(case, Verdict(event["kind"], f"{event['detail']}: {self._noise()}"))

    def _note(self, case: int, verdict: Verdict, facts: dict[str, Any] | None = None) -> None:
        tally = self._tally
        tally.counts[verdict.kind] += 1
        if facts is not None:
            tally.slowest_s = max(tally.slowest_s, facts["cpu_s"])
            tally.most_bytes = max(tally.most_bytes, facts["growth_bytes"])
        if verdict.kind in SOUND:
            return
        signature = f"{verdict.kind} {verdict.detail.strip()[-60:]}"
        self._kept[signature] += 1
        if self._kept[signature] <= _KEPT_OF_EACH:
            line = f"{self._plan.name} {case}: {verdict.kind}: {verdict.summary}"
            tally.findings.append(line)
            self._keep(case, verdict)

    def _keep(self, case: int, verdict: Verdict) -> None:
        plan = self._plan
        if plan.findings is None:
            return
        folder = plan.findings / f"{plan.name}-{plan.seed}-{case}-{verdict.kind}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found = plan.scratch / FOUND_FOLDER / str(case)
        shutil.move(found if found.exists() else plan.scratch / CASE_FOLDER, folder / "input")
        command = f"python -m tests.fuzz --format {plan.name} --seed {plan.seed} --case {case}"
        text = f"{command}\n\n{verdict.kind}: {verdict.detail}\n"
        (folder / "finding.txt").write_text(text, encoding="utf-8", errors="backslashreplace")

    def _noise(self) -> str:
        path = self._plan.scratch / NOISE_FILE
        return path.read_bytes()[-2000:].decode("utf-8", "replace") if path.exists() else ""

    @contextmanager
    def _worker(self, count: int) -> Iterator[subprocess.Popen[bytes]]:
        plan = self._plan
        orders = Orders(
            module=plan.module,
            checkpoint=str(plan.samples.checkpoint),
            bundle=str(plan.samples.bundle),
            work=str(plan.samples.work),
            scratch=str(plan.scratch),
            seed=plan.seed,
            first=self._next,
            count=count,
            cpu_s=plan.limits.cpu_s,
            memory_bytes=plan.limits.memory_bytes,
            limit_bytes=plan.limits.limit_bytes,
        )
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", json.dumps(asdict(orders))],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            yield worker
        finally:
            worker.kill()
            worker.communicate()


def _events(
    worker: subprocess.Popen[bytes], limits: Limits, deadline_s: float
) -> Iterator[dict[str, Any]]:
    """What a worker says, and at last how it ended, was ended, or that there is no time left."""
    assert worker.stdout is not None, "stdout is a pipe"
    os.set_blocking(worker.stdout.fileno(), False)
    rest = b""
    begun_s, begun_cpu_s, allowed_s = time.monotonic(), 0.0, _START_S
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(_LOOK_EVERY_S):
                data = os.read(worker.stdout.fileno(), 1 << 16)
                if not data:
                    yield {"kind": "crash", "detail": _end_of(worker)}
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield json.loads(line)
                begun_s, begun_cpu_s = time.monotonic(), _cpu_s(worker.pid)
                allowed_s = limits.cpu_s
                if begun_s > deadline_s:
                    yield {"late": True}
                    return
            cpu_s, wall_s = _cpu_s(worker.pid) - begun_cpu_s, time.monotonic() - begun_s
            if cpu_s > allowed_s or wall_s > _CLOCK_FACTOR * allowed_s:
                yield {"kind": "hang", "detail": f"{cpu_s:.0f} s of processor time"}
                return


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _end_of(worker: subprocess.Popen[bytes]) -> str:
    code = worker.wait()
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
