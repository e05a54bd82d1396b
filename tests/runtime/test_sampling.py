from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tolerances import SAMPLING_PROBABILITY

from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime.sampling import SamplingOptions, candidates, choose_token


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


@settings(max_examples=300, deadline=None)
@given(logits=LOGITS, options=OPTIONS)
def test_candidates_equal_the_definition(logits, options):
    if max(logits) == -math.inf:
        logits = [*logits, 0.0]
    ids, probabilities = candidates(np.array(logits, np.float32), options)
    expected = slow_candidates(logits, options)
    assert ids.tolist() == [token for token, _ in expected]
    wanted = np.array([probability for _, probability in expected])
    np.testing.assert_allclose(probabilities, wanted, rtol=SAMPLING_PROBABILITY)


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("top_k", [0, 300])
def test_large_vocabularies_equal_the_definition(spread, top_k):
    logits = np.random.default_rng(3).normal(0, spread, 5000).astype(np.float32)
    options = SamplingOptions(temperature=1.0, top_k=top_k, top_p=0.9137, min_p=0.0001)
    ids, _ = candidates(logits, options)
    assert ids.tolist() == [t for t, _ in slow_candidates(logits.tolist(), options)]


def test_draws_follow_the_distribution():
    logits = np.log(np.array([0.5, 0.2, 0.2, 0.1], np.float32))
    random = np.random.default_rng(0)
    options = SamplingOptions(temperature=1.0)
    counts = np.bincount([choose_token(logits, options, random) for _ in range(4000)])
    # Six standard deviations of a binomial count.
    expected = 4000 * np.array([0.5, 0.2, 0.2, 0.1])
    assert (np.abs(counts - expected) < 6 * np.sqrt(expected)).all()


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


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "1"},
        {"temperature": True},
        {"temperature": 10**400},
        {"temperature": 10**5000},
        {"temperature": "x" * 1_000_000},
        {"top_k": -(10**5000)},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_k": True},
        {"top_p": 0},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"min_p": 1.1},
    ],
)
def test_options_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))) as refused:
        SamplingOptions(**wrong)
    assert len(str(refused.value)) < 200
