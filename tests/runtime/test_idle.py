"""Between tokens, and while it waits for input, the runtime costs no processor time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from shoal.runtime.engine.session import Kernels
from shoal.runtime.opening import open_bundle

IDLE_S = 1.0
MOST_CPU_S = 0.02
"""Threads that spin would use IDLE_S each, on a busy machine too: what counts is their own time."""

THREADS = 4
MOST_CPU_ONCE_S = 0.05 * 2 * (THREADS - 1)
"""Threads of a new pool spin once, for about 0.02 s each; decoder and head have a pool each."""


def cpu_while_idle_s() -> float:
    before = time.process_time()
    time.sleep(IDLE_S)
    return time.process_time() - before


@pytest.mark.parametrize("kernels", ["native", "portable"])
def test_threads_do_not_spin_after_a_step(kernels: Kernels, int8_bundle: Path) -> None:
    model = open_bundle(int8_bundle, kernels=kernels, threads=THREADS)
    assert cpu_while_idle_s() < MOST_CPU_ONCE_S
    context = model.new_context()
    context.prefill([5] * 40)
    assert cpu_while_idle_s() < MOST_CPU_S
    for _ in range(3):
        context.decode(7)
    assert cpu_while_idle_s() < MOST_CPU_S


def test_threads_do_not_spin_after_a_draft(int8_bundle: Path) -> None:
    model = open_bundle(int8_bundle, kernels="native", threads=THREADS)
    drafted = model.generate([7] * 20, max_new_tokens=20, draft=2)
    for _ in range(6):  # loads the module and uses all three graphs
        next(drafted)
    time.sleep(IDLE_S)
    next(drafted)
    assert cpu_while_idle_s() < MOST_CPU_S
