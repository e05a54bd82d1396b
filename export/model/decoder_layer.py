"""One layer of the decoder: latent attention, then a dense or a sparse feed-forward network.

Models with late experts have both networks side by side in every other layer; what the experts put
out joins the hidden state at the end of the layer that follows.

Shapes: B batch, T new tokens, S cached tokens, D hidden, K chosen experts,
X = kv_lora_rank + qk_rope_head_dim, R2 = qk_rope_head_dim / 2.
"""

from __future__ import annotations

from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.layers import RMSNorm, SwiGLU
from shoal.export.model.mla import MultiHeadLatentAttention
from shoal.export.model.moe import MoE


class DecoderLayer(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added back."""

    def __init__(self, config: ModelConfig, *, is_moe: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        dense = None if is_moe else SwiGLU(config.hidden_size, config.intermediate_size)
        self.dense_mlp: SwiGLU | None = None
        if is_moe and config.has_late_experts:
            self.dense_mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.mlp: SwiGLU | MoE = MoE(config) if dense is None else dense

    def forward(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: Tensor,
        late: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Run the layer.

        Args:
            hidden: [B,T,D].
            cos: [B,T,R2], of the tokens' positions.
            sin: [B,T,R2].
            cache: [B,S,X], the last T rows free.
            late: [B,T,D], what the experts of the layer before have put out, if they are late.

        Returns:
            Hidden state [B,T,D] and cache [B,S,X]; of a layer with experts also the expert ids
            int64 [B,T,K] and weights [B,T,K], and with late experts what they put out [B,T,D].
        """
        hidden, cache = self.attention_block(hidden, cos, sin, cache)
        hidden, *chosen = self.feed_forward_block(hidden, late)
        return hidden, cache, *chosen

    def attention_block(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, cache: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The first half: norm, attention, residual; returns hidden state and cache."""
        y, cache = self.self_attn(self.input_layernorm(hidden), cos, sin, cache)
        return hidden + y, cache

    def feed_forward_block(self, hidden: Tensor, late: Tensor | None = None) -> tuple[Tensor, ...]:
        """The second half: norm, network, residual; returns what ``forward`` does but the cache."""
        x = self.feed_forward_norm(hidden)
        if isinstance(self.mlp, MoE):
            y, expert_ids, expert_weights = self.mlp(x)
            if self.dense_mlp is not None:
                return hidden + self.dense_mlp(x), expert_ids, expert_weights, y
            return hidden + y, expert_ids, expert_weights
        hidden = hidden + self.mlp(x)
        return (hidden if late is None else hidden + late,)

    def feed_forward_norm(self, hidden: Tensor) -> Tensor:
        """What the second half's ``mlp`` is given, [B,T,D]."""
        x: Tensor = self.post_attention_layernorm(hidden)
        return x
