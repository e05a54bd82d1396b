"""Kimi-K2: DeepSeek-V3 under a name of its own."""

from __future__ import annotations

from dataclasses import replace

from shoal.export.config.families import deepseek_v3

FAMILY = replace(deepseek_v3.FAMILY, model_types=("kimi_k2",))
