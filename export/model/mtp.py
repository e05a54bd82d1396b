"""Multi-token prediction: one more layer that drafts the token after the next one.

Shapes: B batch, T new tokens, D hidden, R2 = qk_rope_head_dim / 2.

Source: DeepSeek-V3 (arXiv 2412.19437), section 2.2, equations 21 to 23.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.decoder_layer import DecoderLayer
from shoal.export.model.layers import Linear, RMSNorm
from shoal.export.model.wiring import HIDDEN, LayerState, mtp_blocks


class MtpModule(nn.Module):
    """Fuses a hidden state with the token that followed it and runs one decoder layer on that.

    Embedding and head are the main model's. The layer has experts whenever the model has any.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.layer = DecoderLayer(config, mtp_blocks(config))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, embedded: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, state: LayerState
    ) -> tuple[Tensor, LayerState, dict[str, Tensor]]:
        """Draft.

        Args:
            embedded: Embeddings of tokens i+1, [B,T,D].
            hidden: Hidden states of tokens i after the final norm, [B,T,D].
            cos: [B,T,R2], of the positions that the layer is to use.
            sin: [B,T,R2].
            state: The module's own, with room for T tokens.

        Returns:
            Hidden state [B,T,D], whose logits are those of tokens i+2, then the new state and the
            experts chosen as ``DecoderLayer`` returns them.
        """
        flow = {HIDDEN: self.fuse(embedded, hidden), "cos": cos, "sin": sin}
        state, chosen = self.layer(flow, state)
        return self.norm(flow[HIDDEN]), state, chosen

    def fuse(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """What the layer is given, [B,T,D]."""
        fused: Tensor = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1))
        return fused
