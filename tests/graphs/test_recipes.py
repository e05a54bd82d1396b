"""Recipes: how weights of each kind are stored."""

from __future__ import annotations

import pytest

from shoal.graphs.errors import ExportError
from shoal.graphs.parameters import KINDS, Parameter
from shoal.graphs.recipes import DEFAULT_RECIPE, RECIPES, WEIGHT_CHOICES, choose_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_a_format_for_every_kind(name: str) -> None:
    assert set(RECIPES[name].formats) == set(KINDS)


def test_a_parameter_has_the_format_of_its_kind_or_stays_float32() -> None:
    recipe = RECIPES["int4-experts"]
    form = recipe.format_of(Parameter.parse("layers.1.mlp.experts.down"))
    assert form is not None
    assert (form.bits, form.block_size) == (4, 32)
    assert recipe.format_of(Parameter.parse("layers.1.mlp.gate.weight")) is None


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
