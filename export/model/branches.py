"""The branches that wirings share: latent attention, a dense network, routed experts."""

from __future__ import annotations

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.layers import SwiGLU
from shoal.export.model.mla import MultiHeadLatentAttention
from shoal.export.model.moe import MoE
from shoal.export.model.wiring import EXPERT_IDS, EXPERT_WEIGHTS, TOKENS, Branch, State
from shoal.graphs.cache_types import cache_parts


def latent_attention(config: ModelConfig) -> Branch:
    """Attention over a latent cache of one row for each token."""
    (cache,) = cache_parts("float32", config.kv_lora_rank, config.qk_rope_head_dim)
    return Branch(
        module="self_attn",
        build=MultiHeadLatentAttention,
        takes=("cos", "sin"),
        states=(State(name=cache.name, shape=(TOKENS, cache.width)),),
    )


def dense_network(config: ModelConfig) -> SwiGLU:
    """The feed-forward network of a layer without experts."""
    return SwiGLU(config.hidden_size, config.intermediate_size)


DENSE = Branch(module="mlp", build=dense_network)
DENSE_BESIDE_EXPERTS = Branch(module="dense_mlp", build=dense_network)
EXPERTS = Branch(module="mlp", build=MoE, gives=(EXPERT_IDS, EXPERT_WEIGHTS))
