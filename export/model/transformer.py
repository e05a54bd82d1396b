"""The whole model: embedding, layers, final norm and head, with explicit states.

The states of the layers go in and come out: nothing here remembers a context. A layer with latent
attention has a ``cache`` [B,S,X] of one row for every token, the last T of them free for the new
ones.

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
from shoal.export.model.wiring import (
    EXPERT_IDS,
    EXPERT_WEIGHTS,
    HIDDEN,
    LayerState,
    grow_state,
    layer_blocks,
)


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
            DecoderLayer(config, layer_blocks(config, layer))
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, input_ids_BT: Tensor, position_ids_BT: Tensor, states: list[LayerState]
    ) -> tuple[Tensor, list[LayerState], dict[int, Routing]]:
        """Run all layers.

        Args:
            input_ids_BT: int64.
            position_ids_BT: int64, from 0.
            states: Of each layer, with room for the new tokens; see ``grow_states``.

        Returns:
            Hidden state [B,T,D] after the final norm, the new states, and the routing by layer.
        """
        cos, sin = self.rotary(position_ids_BT)
        flow = {HIDDEN: self.embed_tokens(input_ids_BT), "cos": cos, "sin": sin}
        new_states: list[LayerState] = []
        routing = {}
        for index, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            new_state, chosen = layer(flow, state)
            new_states.append(new_state)
            if chosen:
                routing[index] = Routing(
                    expert_ids=chosen[EXPERT_IDS], expert_weights=chosen[EXPERT_WEIGHTS]
                )
        return self.norm(flow[HIDDEN]), new_states, routing

    def grow_states(
        self, states: list[LayerState] | None, num_tokens: int, *, batch: int = 1
    ) -> list[LayerState]:
        """The layers' states with room for ``num_tokens`` more; None starts a context."""
        given = [None] * len(self.layers) if states is None else states
        return [
            grow_state(layer_blocks(self.config, index), state, num_tokens, batch=batch)
            for index, state in enumerate(given)
        ]


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
        position_ids = torch.arange(t, device=input_ids_BT.device).expand(b, t)
        states = self.grow_states(None, t, batch=b)
        return self.head(self(input_ids_BT, position_ids, states)[0])
