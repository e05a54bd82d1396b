"""Latent attention: both forms, the cache and the mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tolerances import ATTENTION_FORMS
from torch import Tensor

from shoal.export.model.attention import append_rows, attend_absorbed, attend_expanded
from shoal.export.model.ops import latent_attention

Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]


def random_arguments(b: int, t: int, s: int, h: int, sizes: tuple[int, ...]) -> Arguments:
    n, r, v, c = sizes
    generator = torch.Generator().manual_seed(b * 1000 + t * 100 + s)
    shapes = [(b, t, h, n), (b, t, h, r), (b, s, c + r), (h, n, c), (h, v, c)]
    q_nope, q_rope, cache, w_uk, w_uv = (torch.randn(x, generator=generator) for x in shapes)
    return q_nope, q_rope, cache, w_uk, w_uv, (n + r) ** -0.5


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    b=st.integers(1, 2),
    t=st.integers(1, 9),
    past=st.integers(0, 9),
    h=st.integers(1, 3),
    sizes=st.tuples(
        st.sampled_from([1, 8]), st.sampled_from([2, 4]), st.sampled_from([1, 6]), st.integers(1, 9)
    ),
)
def test_absorbed_attention_equals_expanded(
    b: int, t: int, past: int, h: int, sizes: tuple[int, ...]
) -> None:
    arguments = random_arguments(b, t, past + t, h, sizes)
    absorbed, expanded = attend_absorbed(*arguments), attend_expanded(*arguments)
    error = (absorbed - expanded).abs().max() / expanded.abs().max()
    assert error <= ATTENTION_FORMS, f"relative error {error:.3g}"


@pytest.mark.parametrize("form", [attend_absorbed, attend_expanded])
def test_a_query_sees_its_own_row_and_the_earlier_ones_only(form: object) -> None:
    assert callable(form)
    q_nope, q_rope, cache, w_uk, w_uv, scale = random_arguments(1, 3, 5, 2, (4, 2, 4, 6))
    before = form(q_nope, q_rope, cache, w_uk, w_uv, scale)
    cache = cache.clone()
    cache[:, 4] += 1  # the row of the last of the three queries
    after = form(q_nope, q_rope, cache, w_uk, w_uv, scale)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


def test_one_row_is_attended_to_entirely() -> None:
    q_nope, q_rope, cache, w_uk, w_uv, scale = random_arguments(1, 1, 1, 2, (4, 2, 4, 6))
    value = torch.einsum("c,hvc->hv", cache[0, 0, :6], w_uv)
    torch.testing.assert_close(
        attend_absorbed(q_nope, q_rope, cache, w_uk, w_uv, scale)[0, 0], value
    )


def test_new_rows_fill_the_end_of_the_cache_and_leave_the_rest_and_the_input_alone() -> None:
    cache = torch.arange(20.0).reshape(1, 4, 5)
    kept = cache.clone()
    out = append_rows(cache, torch.full((1, 2, 3), -1.0), torch.full((1, 2, 2), -2.0))
    assert torch.equal(cache, kept)
    assert torch.equal(out[:, :2], kept[:, :2])
    assert out[0, 2:].tolist() == [[-1, -1, -1, -2, -2]] * 2


def test_the_op_attends_to_the_rows_it_has_just_written() -> None:
    q_nope, q_rope, cache, w_uk, w_uv, scale = random_arguments(1, 2, 6, 2, (4, 2, 4, 6))
    latent, k_rope = cache[:, 4:, :6], cache[:, 4:, 6:]
    free = torch.cat([cache[:, :4], torch.full((1, 2, 8), 1e6)], dim=1)
    y, cache_out = latent_attention(q_nope, q_rope, latent, k_rope, free, w_uk, w_uv, scale)
    assert torch.equal(cache_out, cache)
    assert torch.equal(y, attend_absorbed(q_nope, q_rope, cache, w_uk, w_uv, scale))
