"""Rotary embedding: frequencies bit for bit as trained, and both pairings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.export.oracle import V3_SIZES, make_v3

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.rope import RotaryEmbedding, frequencies, rotate

pytestmark = pytest.mark.dependencies


def config(**overrides: Any) -> ModelConfig:
    return ModelConfig.from_hf({"model_type": "deepseek_v3", **V3_SIZES, **overrides})


@pytest.mark.parametrize("theta", [100.0, 10000.0, 50000.0, 1e6])
@pytest.mark.parametrize("size", [2, 8, 32, 64])
def test_plain_frequencies_are_within_one_unit_in_the_last_place_of_torch(
    theta: float, size: int
) -> None:
    ours = frequencies(config(rope_theta=theta, qk_rope_head_dim=size))
    theirs = 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    np.testing.assert_array_almost_equal_nulp(ours, theirs.numpy(), nulp=1)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    theta=st.sampled_from([100.0, 10000.0]),
    factor=st.sampled_from([1.0, 4.0, 40.0]),
    original=st.sampled_from([4, 64, 4096]),
    betas=st.sampled_from([(32.0, 1.0), (2.0, 0.25), (1.0, 1.0)]),
    truncate=st.booleans(),
    size=st.sampled_from([8, 64]),
)
def test_yarn_frequencies_equal_those_of_transformers(
    theta: float,
    factor: float,
    original: int,
    betas: tuple[float, float],
    truncate: bool,
    size: int,
) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": betas[0],
        "beta_slow": betas[1],
        "truncate": truncate,
    }
    oracle = make_v3(num_hidden_layers=1, qk_rope_head_dim=size, rope_parameters=dict(rope)).config
    expected, expected_factor = ROPE_INIT_FUNCTIONS["yarn"](oracle)
    ours = config(qk_rope_head_dim=size, rope_parameters=rope)
    np.testing.assert_array_almost_equal_nulp(frequencies(ours), expected.numpy(), nulp=2)
    assert ours.rope_scaling is not None
    assert ours.rope_scaling.cos_sin_factor == pytest.approx(expected_factor, rel=1e-12)


def test_a_quarter_turn_moves_the_first_of_a_pair_to_the_second() -> None:
    cos, sin = torch.zeros(2), torch.ones(2)
    neighbours = rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), cos, sin, interleaved=True)
    halves = rotate(torch.tensor([1.0, 3.0, 2.0, 4.0]), cos, sin, interleaved=False)
    assert neighbours.tolist() == halves.tolist() == [-2.0, -4.0, 1.0, 3.0]


def test_position_zero_turns_nothing_and_position_one_turns_the_first_pair_by_one_radian() -> None:
    cos, sin = RotaryEmbedding(config())(torch.tensor([[0, 1]]))
    assert cos.shape == sin.shape == (1, 2, 4)
    assert cos[0, 0].tolist() == [1.0] * 4
    assert sin[0, 0].tolist() == [0.0] * 4
    assert sin[0, 1, 0].item() == pytest.approx(np.sin(1.0), rel=1e-6)


def test_tables_keep_their_values_when_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        rotary = RotaryEmbedding(config())
    positions = torch.tensor([[3]])
    assert torch.equal(rotary(positions)[0], RotaryEmbedding(config())(positions)[0])
