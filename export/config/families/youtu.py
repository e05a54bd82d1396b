"""Youtu-LLM: DeepSeek-V3's attention in a dense model whose head is its embedding."""

from __future__ import annotations

from shoal.export.config.families.family import DENSE, Family

FAMILY = Family(
    model_types=("youtu", "youtu_llm"),
    architectures=("YoutuForCausalLM",),
    defaults={
        **DENSE,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "intermediate_size": 6144,
        "max_position_embeddings": 131072,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "tie_word_embeddings": True,
    },
    fixed={"n_routed_experts": 0},
    harmless=frozenset(["embedding_initializer_range"]),
)
