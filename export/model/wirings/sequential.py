"""DeepSeek's layers: attention, then a dense network or experts, each on a normalised copy."""

from __future__ import annotations

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.branches import DENSE, EXPERTS, latent_attention
from shoal.export.model.wiring import Block, Blocks, Wiring


def attention_block(config: ModelConfig) -> Block:
    """The first half of a layer."""
    return Block(name="attention", norm="input_layernorm", branches=(latent_attention(config),))


def _layer(config: ModelConfig, *, has_experts: bool) -> Blocks:
    feed_forward = Block(
        name="experts" if has_experts else "dense",
        norm="post_attention_layernorm",
        branches=(EXPERTS if has_experts else DENSE,),
    )
    return attention_block(config), feed_forward


WIRING = Wiring(
    layer=lambda config, layer: _layer(config, has_experts=config.is_moe_layer(layer)),
    mtp=lambda config: _layer(config, has_experts=config.is_moe),
)
