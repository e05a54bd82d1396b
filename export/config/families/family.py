"""What sets one model family apart from the others, and the list of all families.

Every module of this package that has a ``FAMILY`` is a family: adding one is adding a file.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from shoal.export.config import families as package
from shoal.export.config.values import ConfigReader

Extras = Callable[[ConfigReader, Mapping[str, Any]], dict[str, Any]]
"""Reads keys that one family has: (the config's keys, fields read so far) -> fields to set."""

DENSE: dict[str, Any] = {
    "moe_intermediate_size": 1,
    "n_routed_experts": 0,
    "n_shared_experts": 0,
    "num_experts_per_tok": None,
    "first_k_dense_replace": 0,
}
"""Defaults of a family without experts."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the config.json of a family is to be understood.

    Attributes:
        model_types: Spellings of model_type, the usual one first.
        architectures: What ``architectures`` may name.
        defaults: Values of absent keys, as transformers gives them. COMMON_DEFAULTS need not be
            repeated.
        derived: Values of keys that are absent or null, as functions of the fields read so far.
        fixed: Keys that may have no other value than this.
        topk_methods: How experts may be chosen, the default first.
        scoring_func: Of the router.
        rope_types: Which rotary embeddings the family has.
        wiring: How layers are made of blocks: a file of export/model/wirings.
        harmless: Keys of this family that leave the logits alone.
        aliases: Other spellings of keys, beside the ALIASES of all families.
        extras: Reads what no other family has; None when there is nothing.
        tensor_name: From the name that DeepSeek's checkpoints have for a tensor to this family's.
        ignored_tensors: Names that are not read, beside those that no family needs.
    """

    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    defaults: Mapping[str, Any]
    derived: Mapping[str, Callable[[Mapping[str, Any]], int]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    topk_methods: tuple[str, ...] = ("noaux_tc",)
    scoring_func: str = "sigmoid"
    rope_types: tuple[str, ...] = ("default", "yarn")
    wiring: str = "sequential"
    harmless: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    extras: Extras | None = None
    tensor_name: Callable[[str], str] = str
    ignored_tensors: re.Pattern[str] | None = None


@cache
def families() -> dict[str, Family]:
    """Every family, by each spelling of its model_type."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(package.__path__):
        family = getattr(import_module(f"{package.__name__}.{module.name}"), "FAMILY", None)
        if family is not None:
            found |= dict.fromkeys(family.model_types, family)
    return found
