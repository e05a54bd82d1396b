"""Every tolerance of the tests, each with its reason."""

from __future__ import annotations

FLOAT32_SUMS = 1e-5
"""Relative to the largest value: float32 implementations that add in different orders."""

SAMPLING_PROBABILITY = 1e-12
"""Relative: float64 sums of up to a few thousand terms in different orders."""
