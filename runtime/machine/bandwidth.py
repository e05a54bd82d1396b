"""How fast this machine reads memory: the limit that decoding runs into.

Each thread takes the maximum of an array of bytes that no cache holds, which NumPy computes with
vector instructions faster than memory delivers them, on ARM and x86.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from shoal.runtime.machine.memory import read_memory
from shoal.runtime.machine.system_files import CPUS, read_text

_PASSES = 5
_LEAST_BYTES = 32 << 20  # in all; less would be in caches
_THREAD_BYTES = 64 << 20
_CACHES = 4  # times the largest cache
_MEMORY_SHARE = 4  # a quarter of the memory that is left, at most


def measure_read_bandwidth(threads: int) -> float | None:
    """Bytes per second that so many threads read from memory together, at their best.

    Args:
        threads: as many as decode.

    Returns:
        None where there is not enough memory left to measure.
    """
    memory = read_memory()
    size = array_bytes(threads, largest_cache_bytes(), memory.available_bytes if memory else None)
    if size is None:
        return None
    arrays = [np.ones(size // threads, np.uint8) for _ in range(threads)]
    actions = [functools.partial(np.max, array) for array in arrays]
    seconds = [_together_s(actions) for _ in range(_PASSES)]
    return sum(array.nbytes for array in arrays) / min(seconds)


def array_bytes(threads: int, cache_bytes: int, free_bytes: int | None) -> int | None:
    """Bytes to read in one pass: far more than caches hold, None if that does not fit."""
    wanted = max(threads * _THREAD_BYTES, _CACHES * cache_bytes)
    if free_bytes is None:
        return wanted
    size = min(wanted, free_bytes // _MEMORY_SHARE)
    return size if size >= max(_LEAST_BYTES, 2 * cache_bytes) else None


def largest_cache_bytes(cpus: Path = CPUS) -> int:
    """Size of the largest cache of the first processor, 0 if the system does not say."""
    sizes = [read_text(path) for path in (cpus / "cpu0/cache").glob("index*/size")]
    return max(
        (int(text[:-1]) << {"K": 10, "M": 20}[text[-1]] for text in sizes if _is_size(text)),
        default=0,
    )


def _is_size(text: str) -> bool:
    return text[:-1].isdecimal() and text[-1:] in ("K", "M")


def _together_s(actions: Sequence[Callable[[], object]]) -> float:
    """Seconds from when all threads are ready until the last has done its part."""
    start = threading.Barrier(len(actions) + 1)

    def run(action: Callable[[], object]) -> None:
        start.wait()
        action()

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    start.wait()
    started_s = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started_s
