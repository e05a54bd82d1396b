"""Push a short text through the model layer by layer, while each layer's weights are at hand.

A ``Stream`` is one such text on its way: the float32 one is the reference, the int8 one sees the
weights as the bundle stores them and quantizes activations as the int8 ops do. Together they give
the fidelity of the whole model without the whole model ever being in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shoal.export.config import ModelConfig
from shoal.export.model.layers import Linear, RMSNorm
from shoal.export.model.moe import MoE
from shoal.export.model.ops import embedding, fake_quantize
from shoal.export.model.rope import RotaryEmbedding
from shoal.export.model.transformer import DecoderLayer

Weights = dict[str, Tensor]


@dataclass
class Stream:
    """One text on its way through the layers.

    Attributes:
        config: of the model.
        block_sizes: of the int8 weights, by parameter name; empty for the float32 reference.
        hidden: [B,T,D], what the last finished layer put out.
        expert_ids: one [B,T,K] for each MoE layer passed, in order.
    """

    config: ModelConfig
    block_sizes: dict[str, int]
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    expert_ids: list[Tensor] = field(default_factory=list)

    def embed(self, input_ids: Tensor, weight: Tensor) -> None:
        """Start: look the tokens up. ``input_ids`` int64 [B,T], ``weight`` [W,D]."""
        self.hidden = embedding(input_ids, weight)
        position_ids = torch.arange(input_ids.shape[1])[None].expand_as(input_ids)
        self._cos, self._sin = RotaryEmbedding(self.config)(position_ids)

    def begin_layer(self, layer: int, weights: Weights) -> None:
        """All of a layer but its routed experts. ``weights``: by name within the layer."""
        module = self._load(layer, weights)
        # One window at a time: attention scores and a dense layer's activations are large.
        self.hidden = torch.cat([self._attend(module, i) for i in range(len(self.hidden))])
        x = module.feed_forward_norm(self.hidden)
        if not isinstance(module.mlp, MoE):
            self.hidden = self.hidden + torch.stack([module.mlp(window) for window in x])
            return
        ids, self._expert_weights = module.mlp.route(x)
        self.expert_ids.append(ids)
        self._sparse, self._contribution = module.mlp, module.mlp.shared(x)
        self._block_size = self.block_sizes.get(f"layers.{layer}.mlp.experts.gate_up")
        self._expert_input = self._quantized(x)
        self._activated: list[Tensor] = []

    def expert_gate_up(self, expert: int, weight: Tensor) -> None:
        """First half of one routed expert, for the tokens routed to it. ``weight`` [2F,D]."""
        gate_up = self._expert_input[self._chosen(expert).any(-1)] @ weight.T
        activated = nn.functional.silu(gate_up[..., 0::2]) * gate_up[..., 1::2]
        self._activated.append(self._quantized(activated))

    def expert_down(self, expert: int, weight: Tensor) -> None:
        """Second half of one routed expert. ``weight`` [D,F]."""
        chosen = self._chosen(expert)
        routed = chosen.any(-1)
        share = (self._expert_weights * chosen).sum(-1)[routed]
        self._contribution[routed] += share[:, None] * (self._activated[expert] @ weight.T)

    def end_layer(self) -> None:
        """Finish a layer with routed experts, all of which have been passed."""
        self.hidden = self.hidden + self._sparse.output_norm(self._contribution)

    def head_input(self, norm: Tensor) -> Tensor:
        """Finish: what the head is applied to, [B*T,D]. ``norm`` [D] is the final norm's weight."""
        module = RMSNorm(self.config.hidden_size, self.config.rms_norm_eps)
        module.weight = nn.Parameter(norm, requires_grad=False)
        hidden: Tensor = module(self.hidden).flatten(0, 1)
        name = "embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        block_size = self.block_sizes.get(f"{name}.weight")
        return hidden if block_size is None else fake_quantize(hidden, block_size)

    def _attend(self, module: DecoderLayer, window: int) -> Tensor:
        one = slice(window, window + 1)
        hidden = self.hidden[one]
        cache = hidden.new_zeros(1, hidden.shape[1], self.config.cache_row_size)
        return module.attention_block(hidden, self._cos[one], self._sin[one], cache)[0]

    def _chosen(self, expert: int) -> Tensor:
        return self.expert_ids[-1] == expert

    def _quantized(self, x: Tensor) -> Tensor:
        return x if self._block_size is None else fake_quantize(x, self._block_size)

    def _load(self, layer: int, weights: Weights) -> DecoderLayer:
        with torch.device("meta"):
            module = DecoderLayer(self.config, is_moe=self.config.is_moe_layer(layer))
        missing = module.load_state_dict(weights, strict=False, assign=True).missing_keys
        assert all(".experts." in f".{name}" for name in missing), f"unset: {missing}"
        for name, part in module.named_modules():
            if isinstance(part, Linear):
                part.activation_block_size = self.block_sizes.get(f"layers.{layer}.{name}.weight")
        return module
