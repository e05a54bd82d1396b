from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tolerances import SAMPLING_PROBABILITY

from shoal.runtime.sampling.log_probs import log_probs


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=60),
    count=st.integers(0, 70),
    data=st.data(),
)
def test_log_probabilities_equal_the_definition(
    logits: list[float], count: int, data: st.DataObject
) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    found = log_probs(np.array(logits, np.float32), token, count)
    expected = np.array(logits) - np.log(np.exp(np.array(logits)).sum())
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:count]
    assert (found.token, [i for i, _ in found.top]) == (token, order)
    assert found.logprob == pytest.approx(expected[token], abs=SAMPLING_PROBABILITY)
    values = [value for _, value in found.top]
    np.testing.assert_allclose(values, expected[order], atol=SAMPLING_PROBABILITY)


def test_what_is_impossible_has_no_place_among_the_most_probable() -> None:
    logits = np.array([1e30, -np.inf, -1e30, -np.inf], np.float32)
    assert [token for token, _ in log_probs(logits, 0, 4).top] == [0, 2]
