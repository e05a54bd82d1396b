"""What every measurement of ``shoal bench`` uses: medians, and the same tokens every time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from shoal.runtime.model import Model

Say = Callable[[str], object]
"""Told what is measured next."""

_SEED = 20  # token ids are random but the same in every run: the experts chosen depend on them


def say_nothing(text: str) -> None:
    """For those who need not know what is measured next."""


def median_s(action: Callable[[], None], repeats: int) -> float:
    """Median seconds of an action over ``repeats`` runs, after one that does not count."""
    seconds = []
    for _ in range(repeats + 1):
        started_s = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds[1:])


def random_ids(model: Model, count: int) -> list[int]:
    """The same pseudo-random token ids every time."""
    generator = np.random.default_rng(_SEED)
    ids: list[int] = generator.integers(0, model.manifest.model.vocab_size, count).tolist()
    return ids
