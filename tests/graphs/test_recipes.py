"""Recipes: what kind a weight is and how it is stored."""

from __future__ import annotations

import pytest

from shoal.graphs.errors import ExportError
from shoal.graphs.recipes import (
    DEFAULT_RECIPE,
    KINDS,
    RECIPES,
    WEIGHT_CHOICES,
    choose_recipe,
    weight_kind,
)


@pytest.mark.parametrize(
    ("parameter", "kind"),
    [
        ("embed_tokens.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("layers.3.self_attn.q_proj.weight", "attention_input"),
        ("layers.3.self_attn.kv_a_proj_with_mqa.weight", "attention_input"),
        ("layers.3.self_attn.w_uk", "attention_latent"),
        ("layers.3.self_attn.w_uv", "attention_latent"),
        ("layers.3.self_attn.o_proj.weight", "attention_output"),
        ("layers.0.mlp.down_proj.weight", "dense"),
        ("layers.0.dense_mlp.down_proj.weight", "dense"),
        ("layers.3.mlp.shared_experts.down_proj.weight", "shared_experts"),
        ("layers.3.mlp.experts.gate_up", "experts"),
        ("mtp.0.mlp.experts.down", "experts"),
        ("mtp.0.eh_proj.weight", "other"),
    ],
)
def test_kinds_are_told_by_name(parameter: str, kind: str) -> None:
    assert weight_kind(parameter) == kind


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_a_format_for_every_kind(name: str) -> None:
    assert set(RECIPES[name].formats) == set(KINDS)


def test_the_default_takes_eight_and_a_half_bits_in_blocks_that_allow_drafts() -> None:
    formats = RECIPES[DEFAULT_RECIPE].formats.values()
    assert {form.stored_bits for form in formats} == {8.5}
    assert max(form.block_size for form in formats) <= 64


def test_a_block_size_replaces_that_of_all_8_bit_weights() -> None:
    recipe = choose_recipe("int8", 16)
    assert recipe is not None
    assert {form.block_size for form in recipe.formats.values()} == {16}
    assert recipe.formats["dense"].input_terms == 2


def test_fp32_is_no_recipe() -> None:
    assert choose_recipe("fp32") is None
    assert choose_recipe("fp32", 64) is None


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(ExportError, match=f"expected {', '.join(WEIGHT_CHOICES)}, found 'int3'"):
        choose_recipe("int3")
