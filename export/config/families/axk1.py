"""A.X-K1: DeepSeek-V3 with one more norm, of what a layer's experts put out together.

Released without a bias on the choice of experts, which is then zero.

Source: transformers, models/axk1 @ 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.export.config.families.family import Family
from shoal.export.config.families.layer_types import read_layer_types
from shoal.export.config.values import ConfigReader


def _read_extras(reader: ConfigReader, values: Mapping[str, Any]) -> dict[str, Any]:
    extras = read_layer_types(reader, values)
    return extras | {"has_moe_output_norm": True, "router_bias_is_optional": True}


FAMILY = Family(
    model_types=("axk1", "AXK1"),
    architectures=("AXK1ForCausalLM",),
    defaults={
        "vocab_size": 163840,
        "hidden_size": 7168,
        "num_hidden_layers": 61,
        "num_attention_heads": 64,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 192,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 1,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "max_position_embeddings": 32768,
        "bos_token_id": 163691,
        "eos_token_id": 163691,
    },
    extras=_read_extras,
)
