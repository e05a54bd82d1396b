"""The whole model: embedding, layers, final norm and head, with explicit caches.

Caches go in and come out: nothing here remembers a context. A cache [B,S,X] has one row for every
token, the last T rows free for the new ones.

Shapes: B batch, T new tokens, S cached tokens, D hidden, K chosen experts, W vocabulary,
X = kv_lora_rank + qk_rope_head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.model import ops
from shoal.export.model.decoder_layer import DecoderLayer
from shoal.export.model.layers import Embedding, Linear, RMSNorm
from shoal.export.model.mtp import MtpModule
from shoal.export.model.rope import RotaryEmbedding

__all__ = ["CausalLM", "Decoder", "DecoderLayer", "MtpModule", "Routing"]


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What one MoE layer chose."""

    expert_ids: Tensor  # int64 [B,T,K]
    expert_weights: Tensor  # [B,T,K]


class Decoder(nn.Module):
    """Tokens to hidden states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config)
        self.layers = nn.ModuleList(
            DecoderLayer(config, is_moe=config.is_moe_layer(layer))
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, input_ids_BT: Tensor, position_ids_BT: Tensor, caches: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], dict[int, Routing]]:
        """Run all layers.

        Args:
            input_ids_BT: int64.
            position_ids_BT: int64, from 0.
            caches: One [B,S,X] for each layer, the last T rows free; see ``grow_caches``.

        Returns:
            Hidden state [B,T,D] after the final norm, the new caches, and the routing by layer.
        """
        hidden = self.embed_tokens(input_ids_BT)
        cos, sin = self.rotary(position_ids_BT)
        new_caches, routing = [], {}
        late: list[Tensor] = []
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            hidden, cache, *chosen = layer(hidden, cos, sin, cache, *late)
            new_caches.append(cache)
            if chosen:
                routing[index] = Routing(expert_ids=chosen[0], expert_weights=chosen[1])
            late = chosen[2:]
        return self.norm(hidden), new_caches, routing

    def grow_caches(self, caches: list[Tensor] | None, num_tokens: int) -> list[Tensor]:
        """The caches with ``num_tokens`` free rows more; None starts a context of batch 1."""
        if caches is None:
            row = self.embed_tokens.weight.new_zeros(1, 0, self.config.cache_row_size)
            caches = [row] * self.config.num_hidden_layers
        return [nn.functional.pad(cache, (0, 0, 0, num_tokens)) for cache in caches]


class CausalLM(Decoder):
    """A decoder with the head that turns hidden states into next-token logits.

    Attributes:
        lm_head: None when the head shares the embedding's weight.
        mtp: The multi-token-prediction modules; see export/model/mtp.py.
    """

    def __init__(self, config: ModelConfig, num_mtp_layers: int = 0) -> None:
        super().__init__(config)
        self.lm_head = (
            None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)
        )
        self.mtp = nn.ModuleList(MtpModule(config) for _ in range(num_mtp_layers))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [.., W] of ``hidden`` [.., D]."""
        if self.lm_head is None:
            return ops.linear(hidden, self.embed_tokens.weight)
        logits: Tensor = self.lm_head(hidden)
        return logits

    def logits(self, input_ids_BT: Tensor) -> Tensor:
        """Logits [B,T,W] of every position of a fresh context."""
        b, t = input_ids_BT.shape
        caches = [cache.expand(b, -1, -1) for cache in self.grow_caches(None, t)]
        position_ids = torch.arange(t, device=input_ids_BT.device).expand(b, t)
        return self.head(self(input_ids_BT, position_ids, caches)[0])
