from __future__ import annotations

import math

import numpy as np
import pytest

from shoal.graphs.errors import InputError
from shoal.runtime.sampling.bias import read_bias
from shoal.runtime.sampling.options import SamplingOptions


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
        {"presence_penalty": math.nan},
        {"presence_penalty": 2.1},
        {"presence_penalty": "high"},
        {"frequency_penalty": -2.1},
        {"frequency_penalty": True},
        {"repetition_penalty": 0},
        {"repetition_penalty": -1.5},
        {"repetition_penalty": 10**400},
        {"repetition_penalty": math.nan},
        {"logit_bias": None},
        {"logit_bias": [1, 2]},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {1: -math.inf}},
        {"logit_bias": {1: 101}},
        {"logit_bias": {1: "5"}},
        {"logit_bias": {1: True}},
        {"logit_bias": {-1: 1}},
        {"logit_bias": {True: 1}},
        {"logit_bias": {1.0: 1}},
        {"logit_bias": {"x" * 1_000_000: 1}},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {"01": 1}},
        {"logit_bias": {"\u0661": 1}},
        {"logit_bias": {"9" * 5000: 1}},
        {"logit_bias": {"7": 1, 7: 2}},
    ],
)
def test_options_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))) as refused:
        SamplingOptions(**wrong)
    assert len(str(refused.value)) < 200


def test_a_bias_is_read_with_ids_of_any_kind() -> None:
    assert read_bias({"7": 1, 8: -2.5, np.int64(9): np.float32(0.5)}) == {7: 1, 8: -2.5, 9: 0.5}
