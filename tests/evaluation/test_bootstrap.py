"""Confidence intervals: against theory where there is one, and paired."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.runtime.evaluation.bootstrap import Bootstrap

UNITS = 400


@pytest.fixture
def sums() -> np.ndarray:
    return np.random.default_rng(3).normal(10, 2, UNITS)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution(sums: np.ndarray) -> None:
    found = Bootstrap(UNITS).ratio(sums, np.ones(UNITS))
    half = 1.96 * sums.std() / np.sqrt(UNITS)
    assert found.value == pytest.approx(sums.mean())
    # 1000 draws leave about 4 % of the half width uncertain at either end.
    assert found.low == pytest.approx(sums.mean() - half, abs=0.2 * half)
    assert found.high == pytest.approx(sums.mean() + half, abs=0.2 * half)


def test_windows_count_as_much_as_they_are_long() -> None:
    found = Bootstrap(2).ratio(np.array([30.0, 10.0]), np.array([3.0, 1.0]))
    assert (found.value, found.low, found.high) == (10.0, 10.0, 10.0)


def test_a_difference_that_is_the_same_everywhere_is_certain(sums: np.ndarray) -> None:
    """Draws are shared, so that what models have in common is no part of their difference."""
    ones = np.ones(UNITS)
    apart = [Bootstrap(UNITS).ratio(values, ones) for values in (sums, sums + 1)]
    difference = Bootstrap(UNITS).ratio((sums + 1) - sums, ones)
    assert apart[0].low is not None
    assert apart[1].low == pytest.approx(apart[0].low + 1)
    assert difference.low == pytest.approx(1)
    assert difference.high == pytest.approx(1)


def test_a_figure_of_the_ratio_is_taken_of_the_interval_too(sums: np.ndarray) -> None:
    plain = Bootstrap(UNITS).ratio(sums, np.ones(UNITS))
    exp = Bootstrap(UNITS).ratio(sums, np.ones(UNITS), np.exp)
    assert plain.low is not None
    assert plain.high is not None
    assert exp.low is not None
    assert exp.high is not None
    found = [exp.value, exp.low, exp.high]
    np.testing.assert_allclose(found, np.exp([plain.value, plain.low, plain.high]), rtol=1e-3)


def test_one_window_has_no_interval() -> None:
    found = Bootstrap(1).ratio(np.array([2.0]), np.array([4.0]))
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_intervals_are_the_same_in_every_run(sums: np.ndarray) -> None:
    first, second = (Bootstrap(UNITS).ratio(sums, np.ones(UNITS)) for _ in range(2))
    assert first == second
