"""MiniCPM3: dense, with scaled embeddings, residuals and logits, and LongRoPE.

The scales cost nothing when the model runs: they are multiplied into the weights
(export/checkpoint/layer_sources.py).

Source: transformers, models/minicpm3 @ 5.23; MiniCPM (arXiv 2404.06395), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shoal.export.config.families.family import DENSE, Family
from shoal.export.config.values import ConfigReader


def _read_scales(reader: ConfigReader, values: Mapping[str, Any]) -> dict[str, Any]:
    depth, base = _scale(reader, "scale_depth"), _scale(reader, "dim_model_base")
    return {
        "embedding_scale": _scale(reader, "scale_emb") or 1.0,
        "residual_scale": depth / math.sqrt(max(values["num_hidden_layers"], 1)) if depth else 1.0,
        "logits_scale": base / max(values["hidden_size"], 1) if base else 1.0,
    }


def _scale(reader: ConfigReader, key: str) -> float | None:
    """A scale above 0; null means that nothing is scaled."""
    value = reader.number(key, null=True)
    if value is None or 0 < value < math.inf:
        return value
    reader.refuse(key, "a finite number above 0", value)
    return None


def _value_size(values: Mapping[str, Any]) -> int:
    size: int = values["hidden_size"] // max(values["num_attention_heads"], 1)
    return size


FAMILY = Family(
    model_types=("minicpm3",),
    architectures=("MiniCPM3ForCausalLM",),
    defaults={
        **DENSE,
        "vocab_size": 73448,
        "hidden_size": 2560,
        "num_hidden_layers": 62,
        "num_attention_heads": 40,
        "q_lora_rank": 768,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "intermediate_size": 6400,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "rope_interleave": False,
        "scale_emb": 12.0,
        "scale_depth": 1.4,
        "dim_model_base": 256.0,
    },
    derived={"v_head_dim": _value_size},
    fixed={"n_routed_experts": 0, "rope_interleave": False},
    rope_types=("default", "yarn", "longrope"),
    extras=_read_scales,
)
