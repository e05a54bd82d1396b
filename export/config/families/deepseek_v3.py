"""DeepSeek-V3 and R1, and Moonlight: sigmoid routing with a bias, multi-token prediction."""

from __future__ import annotations

from shoal.export.config.families.family import Family

FAMILY = Family(
    model_types=("deepseek_v3",),
    architectures=("DeepseekV3ForCausalLM",),
    defaults={
        "vocab_size": 129280,
        "hidden_size": 7168,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "max_position_embeddings": 4096,
        "num_nextn_predict_layers": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
)
