"""DeepSeek-V2 and V2-Lite: softmax routing; no bias on the choice, no multi-token prediction."""

from __future__ import annotations

from shoal.export.config.families.family import Family

FAMILY = Family(
    model_types=("deepseek_v2",),
    architectures=("DeepseekV2ForCausalLM",),
    defaults={
        "vocab_size": 102400,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "moe_intermediate_size": 1407,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": None,
        "first_k_dense_replace": 0,
        "n_group": None,
        "topk_group": None,
        "routed_scaling_factor": 1.0,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    # DeepSeek's own code drops the scaling factor when norm_topk_prob is set, transformers ignores
    # the key: there is no agreed meaning of it.
    fixed={"norm_topk_prob": False, "rope_interleave": True},
    topk_methods=("greedy", "group_limited_greedy"),
    scoring_func="softmax",
)
