"""Templates of small models, traced once for all tests that stamp them."""

from __future__ import annotations

import functools
from typing import Any

from tests.export.family_cases import CASES

from shoal.export.config.model_config import ModelConfig
from shoal.export.tracing.templates import trace_templates
from shoal.export.tracing.trace import Template

NUM_LAYERS = 3


@functools.cache
def small_config(family: str) -> ModelConfig:
    """The config of a family's small model; it has NUM_LAYERS layers, LongCat-Flash's has four."""
    raw: dict[str, Any] = CASES[family].make().config.to_dict()
    return ModelConfig.from_hf(raw)


@functools.cache
def small_templates(family: str, *, with_mtp: bool = False) -> dict[str, Template]:
    """What ``trace_templates`` gives for it."""
    return trace_templates(small_config(family), with_mtp=with_mtp)


def traced_before(config: ModelConfig, *, with_mtp: bool) -> dict[str, Template]:
    """In place of ``trace_templates``, for the configs above."""
    family = next(name for name in CASES if small_config(name) == config)
    return small_templates(family, with_mtp=with_mtp)
