"""Running programs: to the end, or watched for memory and for what they say when."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_SAMPLE_S = 0.02


class FailedError(Exception):
    """A program failed; the message is one line."""


def run(command: Sequence[str], **environment: str) -> str:
    """Run a program quietly; what it printed.

    Raises:
        FailedError: it cannot be started or fails.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | environment
        )
    except OSError as error:
        raise FailedError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise FailedError(_failure(command, done.returncode, done.stderr))
    return done.stdout


def _failure(command: Sequence[str], status: int, text: str) -> str:
    lines = text.strip().splitlines()
    return f"{command[0]} exited with {status}: {lines[-1] if lines else 'no message'}"


class Watch:
    """Runs a program and watches it.

    Attributes:
        output: what it printed on stdout.
        anonymous_bytes: most anonymous memory it had in RAM at one time.
        resident_bytes: most memory in RAM, mapped files included.

    Raises:
        FailedError: the program fails.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.anonymous_bytes = self.resident_bytes = 0
        self._said: list[tuple[float, str]] = []
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            threads = [
                threading.Thread(target=self._listen, args=(process,)),
                threading.Thread(target=self._sample, args=(process,)),
            ]
            for thread in threads:
                thread.start()
            assert process.stdout is not None, "asked for above"
            self.output = process.stdout.read()
            process.wait()
            for thread in threads:
                thread.join()
        if process.returncode != 0:
            text = "\n".join(line for _, line in self._said)
            raise FailedError(_failure(command, process.returncode, text))

    def seconds_between(self, first: str, then: str) -> float:
        """Seconds from the first message with one text to the next that has the other."""
        started_s = next(when for when, line in self._said if first in line)
        return next(when for when, line in self._said if when > started_s and then in line) - (
            started_s
        )

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None, "asked for above"
        for line in process.stderr:
            self._said.append((time.perf_counter(), line.rstrip()))

    def _sample(self, process: subprocess.Popen[str]) -> None:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", status.read_text(), re.MULTILINE))
            anonymous = 1024 * int(fields.get("RssAnon", 0))
            self.anonymous_bytes = max(self.anonymous_bytes, anonymous)
            self.resident_bytes = max(self.resident_bytes, 1024 * int(fields.get("VmRSS", 0)))
            time.sleep(_SAMPLE_S)
