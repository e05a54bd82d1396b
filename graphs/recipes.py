"""Recipes: how each kind of weight is stored, by name.

A recipe is chosen at export (``--weights``); the manifest keeps its name and what it came to. What
each one costs and why it is made so is measured in docs/accuracy.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from shoal.graphs.errors import ExportError
from shoal.graphs.parameters import KINDS, Parameter

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Values that may share a scale."""

FLOAT32 = "fp32"
"""The recipe that leaves all weights as they are."""

DEFAULT_RECIPE = "int8"
INT4_EXPERTS = "int4-experts"


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """How a weight is stored and multiplied.

    Attributes:
        bits: 8, or 4 for two values in a byte.
        block_size: neighbours along the input dimension that share a float32 scale.
        input_terms: how many int8 numbers stand for one value of the product's input; 2 adds what
            the first one lost by rounding.
    """

    bits: int = 8
    block_size: int
    input_terms: int = 1

    @property
    def stored_bits(self) -> float:
        """Bits of one weight with its share of the scale."""
        return self.bits + 32 / self.block_size


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named choice of formats.

    Attributes:
        name: what ``--weights`` and the manifest call it.
        meaning: in a few words.
        formats: by kind, all of ``KINDS``.
    """

    name: str
    meaning: str
    formats: Mapping[str, WeightFormat] = field(hash=False)

    def format_of(self, parameter: Parameter) -> WeightFormat | None:
        """How a parameter is stored, None for one that stays float32."""
        return None if parameter.kind is None else self.formats[parameter.kind]

    def with_block_size(self, block_size: int) -> Recipe:
        """The recipe with blocks of another size for all its 8-bit weights."""
        formats = {
            kind: replace(form, block_size=block_size) if form.bits == 8 else form
            for kind, form in self.formats.items()
        }
        return replace(self, formats=MappingProxyType(formats))


def _recipe(name: str, meaning: str, block_size: int, *two_terms: str) -> Recipe:
    formats = {
        kind: WeightFormat(block_size=block_size, input_terms=2 if kind in two_terms else 1)
        for kind in KINDS
    }
    return Recipe(name=name, meaning=meaning, formats=MappingProxyType(formats))


def _with_int4_experts() -> Recipe:
    int8 = _recipe(INT4_EXPERTS, "routed experts in 4 bits, the rest as int8", 64, *_SENSITIVE)
    experts = WeightFormat(bits=4, block_size=32)
    return replace(int8, formats=MappingProxyType({**int8.formats, "experts": experts}))


_SENSITIVE = ("dense", "attention_input")

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            _recipe("int8", "blocks of 64", 64, *_SENSITIVE),
            _recipe(
                "int8-accurate",
                "blocks of 32",
                32,
                *_SENSITIVE,
                *("attention_output", "shared_experts", "head"),
            ),
            _with_int4_experts(),
        )
    }
)
"""The recipes by name; ``FLOAT32``, which stores no int8, is not among them."""

WEIGHT_CHOICES = (*RECIPES, FLOAT32)
"""What ``--weights`` may be."""


def choose_recipe(weights: str, block_size: int | None = None) -> Recipe | None:
    """The recipe of that name, None for ``FLOAT32``.

    Args:
        weights: one of ``WEIGHT_CHOICES``.
        block_size: for its 8-bit weights instead of its own.

    Raises:
        ExportError: there is no such recipe.
    """
    if weights == FLOAT32:
        return None
    if weights not in RECIPES:
        raise ExportError(f"weights: expected {', '.join(WEIGHT_CHOICES)}, found {weights!r}")
    recipe = RECIPES[weights]
    return recipe if block_size is None else recipe.with_block_size(block_size)
