"""What a manifest says of a small model, for tests in which no graph runs."""

from __future__ import annotations

from shoal.graphs.manifest import ModelInfo

SMALL_MODEL = ModelInfo(
    model_type="deepseek_v3",
    vocab_size=256,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    kv_lora_rank=48,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=16,
    max_position_embeddings=100,
    moe_layers=(1, 2),
    n_routed_experts=8,
    num_experts_per_tok=2,
    num_mtp_layers=0,
    parameters=2_000_000,
    active_parameters=500_000,
    eos_token_ids=(1,),
    bos_token_id=0,
)
