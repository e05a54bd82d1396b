"""GLM-4.7-Flash: DeepSeek-V3 with larger heads; layers are listed as dense or sparse."""

from __future__ import annotations

from shoal.export.config.families.family import Family
from shoal.export.config.families.layer_types import read_layer_types

FAMILY = Family(
    model_types=("glm4_moe_lite",),
    architectures=("Glm4MoeLiteForCausalLM",),
    defaults={
        "vocab_size": 154880,
        "hidden_size": 2048,
        "num_hidden_layers": 47,
        "num_attention_heads": 20,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "intermediate_size": 10240,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.8,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    extras=read_layer_types,
)
