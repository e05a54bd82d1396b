"""LongCat-Flash's layers: every other one has experts beside its dense network.

What the experts put out joins the hidden state at the end of the layer that follows.
"""

from __future__ import annotations

from dataclasses import replace

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.branches import DENSE, DENSE_BESIDE_EXPERTS, EXPERTS
from shoal.export.model.wiring import Block, Blocks, Wiring
from shoal.export.model.wirings.sequential import attention_block

LATE = "late"


def _layer(config: ModelConfig, layer: int) -> Blocks:
    norm = "post_attention_layernorm"
    dense = Block(name="dense", norm=norm, branches=(DENSE,), adds=(LATE,))
    experts = Block(
        name="experts",
        norm=norm,
        branches=(replace(EXPERTS, joins=LATE), DENSE_BESIDE_EXPERTS),
    )
    return attention_block(config), experts if config.is_moe_layer(layer) else dense


WIRING = Wiring(layer=_layer)
