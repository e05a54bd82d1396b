"""The memory an export reports is its own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from shoal.export.peak_memory import peak_memory_bytes

REPORT = "from shoal.export.peak_memory import peak_memory_bytes; print(peak_memory_bytes())"


def test_memory_taken_for_a_moment_counts() -> None:
    before = peak_memory_bytes()
    np.ones(before // 4, dtype=np.float64)
    assert peak_memory_bytes() > before


def test_memory_of_the_process_that_started_this_one_does_not_count() -> None:
    held = np.ones(1 << 26)  # 512 MB
    command = [sys.executable, "-c", REPORT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < held.nbytes
