"""Multi-head latent attention (MLA): the projections around attention over a latent cache.

Shapes: B batch, T new tokens, S cached tokens, D hidden, H heads, C kv_lora_rank, R rope,
N no-rope and V value head size, L q_lora_rank, X = C + R, R2 = R/2.

Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1; equations 37 to 47 in appendix C.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.model import ops
from shoal.export.model.layers import Linear, RMSNorm
from shoal.export.model.rope import rotate

LATENT_NORM_EPS = 1e-6
"""Of the norms inside the attention, whatever rms_norm_eps says: the models were trained so."""


class MultiHeadLatentAttention(nn.Module):
    """Attention whose cache holds one latent and one rotated key per token, for all heads.

    Attributes:
        w_uk: [H,N,C], from latent to each head's key (paper: W^UK).
        w_uv: [H,V,C], from latent to each head's value (paper: W^UV). Both are parts of the
            checkpoint's kv_b_proj.
        attend: The op between the projections; the fidelity pass puts in one of its own.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attend = ops.latent_attention
        hidden, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        if config.q_lora_rank is None:
            self.q_proj = Linear(hidden, heads * config.qk_head_dim)
        else:
            self.q_a_proj = Linear(hidden, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(hidden, config.cache_row_size, bias=bias)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, LATENT_NORM_EPS)
        rank = config.kv_lora_rank
        self.w_uk = nn.Parameter(torch.empty(heads, config.qk_nope_head_dim, rank))
        self.w_uv = nn.Parameter(torch.empty(heads, config.v_head_dim, rank))
        self.o_proj = Linear(heads * config.v_head_dim, hidden, bias=bias)

    def forward(
        self, x_BTD: Tensor, cos_BTR2: Tensor, sin_BTR2: Tensor, cache_BSX: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend to the cache and the new tokens.

        Args:
            x_BTD: New tokens, normalised.
            cos_BTR2: Cosines of their positions.
            sin_BTR2: Sines of their positions.
            cache_BSX: Cache whose last T rows are free.

        Returns:
            [B,T,D], and the cache with the new rows [B,S,X].
        """
        q_nope_BTHN, q_rope_BTHR = self._queries(x_BTD, cos_BTR2, sin_BTR2)
        latent_BTC, k_rope_BTR = self._cache_rows(x_BTD, cos_BTR2, sin_BTR2)
        y_BTHV, cache_BSX = self.attend(
            q_nope_BTHN,
            q_rope_BTHR,
            latent_BTC,
            k_rope_BTR,
            cache_BSX,
            self.w_uk,
            self.w_uv,
            self.config.softmax_scale,
        )
        return self.o_proj(y_BTHV.flatten(2)), cache_BSX

    def _queries(self, x_BTD: Tensor, cos_BTR2: Tensor, sin_BTR2: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.q_lora_rank is None:
            q = self.q_proj(x_BTD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        q = q.unflatten(-1, (config.num_attention_heads, config.qk_head_dim))
        q_nope, q_rope = q.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        cos, sin = cos_BTR2[:, :, None], sin_BTR2[:, :, None]
        return q_nope, rotate(q_rope, cos, sin, interleaved=config.rope_interleave)

    def _cache_rows(
        self, x_BTD: Tensor, cos_BTR2: Tensor, sin_BTR2: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the new tokens leave in the cache: latents [B,T,C] and rotated keys [B,T,R]."""
        config = self.config
        latent, k_rope = self.kv_a_proj_with_mqa(x_BTD).split(
            [config.kv_lora_rank, config.qk_rope_head_dim], dim=-1
        )
        rotated = rotate(k_rope, cos_BTR2, sin_BTR2, interleaved=config.rope_interleave)
        return self.kv_a_layernorm(latent), rotated
