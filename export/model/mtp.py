"""Multi-token prediction: one more layer that drafts the token after the next one.

Shapes: B batch, T new tokens, S cached tokens, D hidden, X = kv_lora_rank + qk_rope_head_dim,
R2 = qk_rope_head_dim / 2.

Source: DeepSeek-V3 (arXiv 2412.19437), section 2.2, equations 21 to 23.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.decoder_layer import DecoderLayer
from shoal.export.model.layers import Linear, RMSNorm


class MtpModule(nn.Module):
    """Fuses a hidden state with the token that followed it and runs one decoder layer on that.

    Embedding and head are the main model's. The layer has experts whenever the model has any.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.layer = DecoderLayer(config, is_moe=config.is_moe)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, embedded: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, cache: Tensor
    ) -> tuple[Tensor, ...]:
        """Draft.

        Args:
            embedded: Embeddings of tokens i+1, [B,T,D].
            hidden: Hidden states of tokens i after the final norm, [B,T,D].
            cos: [B,T,R2], of the positions that the layer is to use.
            sin: [B,T,R2].
            cache: The module's own, [B,S,X], the last T rows free.

        Returns:
            Hidden state [B,T,D], whose logits are those of tokens i+2, then cache and routing as
            ``DecoderLayer`` returns them.
        """
        hidden, *rest = self.layer(self.fuse(embedded, hidden), cos, sin, cache)
        return self.norm(hidden), *rest

    def fuse(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """What the layer is given, [B,T,D]."""
        fused: Tensor = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1))
        return fused
