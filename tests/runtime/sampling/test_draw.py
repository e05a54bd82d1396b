from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tolerances import SAMPLING_PROBABILITY

from shoal.graphs.errors import RuntimeFailure
from shoal.runtime.sampling.draw import candidates, choose_token
from shoal.runtime.sampling.largest import largest
from shoal.runtime.sampling.options import SamplingOptions


def slow_candidates(logits, options):
    """The same by the definition: one list of (token, probability), filtered step by step."""
    best = max(logits)
    weights = [math.exp((value - best) / options.temperature) for value in logits]
    total = sum(weights)
    kept = [(token, weight / total) for token, weight in enumerate(weights) if weight > 0]
    kept.sort(key=lambda pair: (-pair[1], pair[0]))
    if options.top_k:
        kept = renormalised(kept[: options.top_k])
    if options.top_p < 1:
        mass, chosen = Fraction(0), []
        for token, probability in kept:
            if mass >= Fraction(options.top_p):
                break
            chosen.append((token, probability))
            mass += Fraction(probability)
        kept = renormalised(chosen)
    kept = [pair for pair in kept if pair[1] >= options.min_p * kept[0][1]]
    return renormalised(kept)


def renormalised(pairs):
    total = sum(probability for _, probability in pairs)
    return [(token, probability / total) for token, probability in pairs]


# Multiples of 1/4 make ties common; odd thresholds keep sums off the bounds.
LOGITS = st.lists(st.integers(-40, 40).map(lambda n: n / 4) | st.just(-math.inf), min_size=1)
OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.3, 0.8, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 3, 7, 1000]),
    top_p=st.sampled_from([0.0123, 0.3137, 0.8519, 0.99871, 1.0]),
    min_p=st.sampled_from([0.0, 0.0517, 0.4931]),
)


def drawn_from(logits, options):
    """Tokens that can be drawn and their probabilities, the most probable first."""
    logits = np.array(logits, np.float32)
    ids, weights = candidates(logits, options)
    ids = np.asarray(ids)[weights > 0]
    probabilities = weights[weights > 0] / weights.sum()
    order = np.lexsort((ids, -logits[ids]))
    return ids[order].tolist(), probabilities[order]


@settings(max_examples=300, deadline=None)
@given(logits=LOGITS, options=OPTIONS)
def test_candidates_equal_the_definition(logits, options):
    if max(logits) == -math.inf:
        logits = [*logits, 0.0]
    ids, probabilities = drawn_from(logits, options)
    expected = slow_candidates(logits, options)
    assert ids == [token for token, _ in expected]
    wanted = np.array([probability for _, probability in expected])
    np.testing.assert_allclose(probabilities, wanted, rtol=SAMPLING_PROBABILITY)


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 8.0])
@pytest.mark.parametrize("top_k", [0, 300])
@pytest.mark.parametrize("top_p", [0.1137, 0.9137, 0.99971])
def test_large_vocabularies_equal_the_definition(spread, top_k, top_p):
    logits = np.random.default_rng(3).normal(0, spread, 5000).astype(np.float32)
    options = SamplingOptions(temperature=1.0, top_k=top_k, top_p=top_p, min_p=0.0001)
    ids, _ = drawn_from(logits, options)
    assert ids == [t for t, _ in slow_candidates(logits.tolist(), options)]


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.integers(-9, 9) | st.just(-math.inf), min_size=1, max_size=900),
    count=st.integers(1, 40) | st.integers(1, 920),
)
def test_the_largest_values_are_those_of_a_stable_sort(values, count):
    values = np.array(values, np.float32)
    expected = np.sort(np.argsort(-values, kind="stable")[:count])
    assert largest(values, count).tolist() == expected.tolist()


class LargestNumber:
    """A generator of the largest number that generators give."""

    def random(self):
        return 1 - 2.0**-53


@settings(max_examples=200, deadline=None)
@given(logits=st.lists(st.floats(-30, 30, width=32), min_size=1))
def test_the_largest_random_number_takes_the_last_token_that_is_possible(logits):
    padded = np.array([*logits, -math.inf], np.float32)
    options = SamplingOptions(temperature=1.0)
    bounds = np.cumsum(np.exp(padded.astype(np.float64) - padded.max()))
    largest_number: Any = LargestNumber()
    token = choose_token(padded, options, largest_number)
    assert bounds[token] == bounds[-1]
    assert padded[token] > -math.inf


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 30},
        {"top_p": 0.83},
        {"min_p": 0.021},
        {"temperature": 1.6, "top_k": 200, "top_p": 0.95, "min_p": 0.003},
    ],
    ids=str,
)
def test_real_draws_have_the_distribution_of_the_definition(options: dict[str, Any]) -> None:
    chosen = SamplingOptions(**{"temperature": 1.0} | options)
    logits = np.random.default_rng(1).normal(0, 2, 600).astype(np.float32)
    random, draws = np.random.default_rng(2), 6_000
    counts = np.zeros(600)
    for _ in range(draws):
        counts[choose_token(logits, chosen, random)] += 1
    expected = np.zeros(600)
    for token, probability in slow_candidates(logits.tolist(), chosen):
        expected[token] = draws * probability
    assert not counts[expected == 0].any()
    common = expected >= 5  # the rest together make one cell
    cells = [(counts[common], expected[common])]
    if (rare := expected[~common].sum()) >= 5:
        cells.append((counts[~common].sum(keepdims=True), np.array([rare])))
    statistic = sum(((found - wanted) ** 2 / wanted).sum() for found, wanted in cells)
    freedom = sum(len(wanted) for _, wanted in cells) - 1
    # Chi-square is nearly normal: exceeded once in 30,000; the seeds are fixed.
    assert statistic < freedom + 4 * math.sqrt(2 * freedom), f"{statistic:.1f} of {freedom}"


def test_a_seed_draws_the_same_token_however_the_candidates_are_found():
    logits = np.random.default_rng(1).normal(0, 3, 5000).astype(np.float32)
    filters: list[dict[str, Any]] = [
        {},
        {"top_k": 5000},
        {"top_k": 4999},
        {"top_p": 1 - 1e-9},
        {"min_p": 1e-12},
    ]
    forms = [SamplingOptions(temperature=1.0, **form) for form in filters]
    for seed in range(50):
        tokens = {choose_token(logits, options, np.random.default_rng(seed)) for options in forms}
        assert len(tokens) == 1


def test_temperature_zero_takes_the_first_of_the_best_and_draws_nothing():
    random = np.random.default_rng(0)
    options = SamplingOptions(temperature=0, top_k=2, top_p=0.5)
    assert choose_token(np.array([1, 3, 3, 2], np.float32), options, random) == 1
    assert random.random() == np.random.default_rng(0).random()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([1e-300, 1e-30, 1.0, 1e30]))
def test_excluded_tokens_are_never_chosen(seed, temperature):
    logits = np.array([-np.inf, 5, -np.inf, 4, 1e30, -np.inf], np.float32)
    options = SamplingOptions(temperature=temperature)
    assert choose_token(logits, options, np.random.default_rng(seed)) in (1, 3, 4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("bad", "found"), [([0, np.nan], "NaN"), ([0, np.inf], r"\+inf"), ([-np.inf] * 2, "only -inf")]
)
def test_damaged_logits_are_reported(temperature, bad, found):
    options = SamplingOptions(temperature=temperature)
    with pytest.raises(RuntimeFailure, match=f"found {found}"):
        choose_token(np.array(bad, np.float32), options, np.random.default_rng(0))
