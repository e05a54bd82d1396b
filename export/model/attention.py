"""Attention over a latent cache, in two forms of one meaning.

The cache holds one row per token: a latent vector, from which every head derives its own key and
value, and one rotated key that all heads share. ``attend_expanded`` derives keys and values and
attends as usual. ``attend_absorbed`` moves the key matrix to the query side and the value matrix
past the weighted sum, so that all heads attend to the latents themselves: nothing is expanded.

    q . (W_UK c)      = (W_UK^T q) . c
    sum_s p_s W_UV c_s = W_UV (sum_s p_s c_s)

Per query and cached row, absorbed costs 2C + R multiplications a head and expanded N + R + V; but
expanding costs C (N + V) a head for every cached row, once a call. One query is far cheaper
absorbed, a long prompt expanded.

Shapes: B batch, T new tokens, S cached tokens (the new ones are the last T), H heads, C latent,
R rope, N no-rope and V value head size, X = C + R.

Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.2 and appendix C.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXPAND_FROM_TOKENS = 32
"""Queries per call from which ``attend`` takes the expanded form."""


def append_rows(cache_BSX: Tensor, latent_BTC: Tensor, k_rope_BTR: Tensor) -> Tensor:
    """The cache with its last T rows replaced by those of the new tokens."""
    rows_BTX = torch.cat([latent_BTC, k_rope_BTR], dim=-1)
    num_past = cache_BSX.shape[1] - rows_BTX.shape[1]
    return torch.cat([cache_BSX[:, :num_past], rows_BTX], dim=1)


def attend(
    q_nope_BTHN: Tensor,
    q_rope_BTHR: Tensor,
    cache_BSX: Tensor,
    w_uk_HNC: Tensor,
    w_uv_HVC: Tensor,
    softmax_scale: float,
) -> Tensor:
    """Attend causally to the cache, in the cheaper form; see ``attend_absorbed``."""
    form = attend_expanded if q_nope_BTHN.shape[1] >= EXPAND_FROM_TOKENS else attend_absorbed
    return form(q_nope_BTHN, q_rope_BTHR, cache_BSX, w_uk_HNC, w_uv_HVC, softmax_scale)


def attend_absorbed(
    q_nope_BTHN: Tensor,
    q_rope_BTHR: Tensor,
    cache_BSX: Tensor,
    w_uk_HNC: Tensor,
    w_uv_HVC: Tensor,
    softmax_scale: float,
) -> Tensor:
    """Attend causally in latent space.

    Args:
        q_nope_BTHN: Queries, part without rotation.
        q_rope_BTHR: Queries, rotated part.
        cache_BSX: Cache that holds the new tokens' rows already.
        w_uk_HNC: From latent to each head's key (paper: W^UK).
        w_uv_HVC: From latent to each head's value (paper: W^UV).
        softmax_scale: Factor of the scores.

    Returns:
        [B,T,H,V].
    """
    q_latent_BTHC = torch.einsum("bthn,hnc->bthc", q_nope_BTHN, w_uk_HNC)
    q_BTHX = torch.cat([q_latent_BTHC, q_rope_BTHR], dim=-1)
    scores_BHTS = torch.einsum("bthx,bsx->bhts", q_BTHX, cache_BSX)
    p_BHTS = _causal_softmax(scores_BHTS, softmax_scale)
    latent_BSC = cache_BSX[..., : w_uk_HNC.shape[-1]]
    context_BTHC = torch.einsum("bhts,bsc->bthc", p_BHTS, latent_BSC)
    return torch.einsum("bthc,hvc->bthv", context_BTHC, w_uv_HVC)


def attend_expanded(
    q_nope_BTHN: Tensor,
    q_rope_BTHR: Tensor,
    cache_BSX: Tensor,
    w_uk_HNC: Tensor,
    w_uv_HVC: Tensor,
    softmax_scale: float,
) -> Tensor:
    """Attend causally with each head's own keys and values; arguments as ``attend_absorbed``."""
    rank = w_uk_HNC.shape[-1]
    latent_BSC, k_rope_BSR = cache_BSX[..., :rank], cache_BSX[..., rank:]
    k_BSHN = torch.einsum("bsc,hnc->bshn", latent_BSC, w_uk_HNC)
    v_BSHV = torch.einsum("bsc,hvc->bshv", latent_BSC, w_uv_HVC)
    scores_BHTS = torch.einsum("bthn,bshn->bhts", q_nope_BTHN, k_BSHN)
    scores_BHTS = scores_BHTS + torch.einsum("bthr,bsr->bhts", q_rope_BTHR, k_rope_BSR)
    p_BHTS = _causal_softmax(scores_BHTS, softmax_scale)
    return torch.einsum("bhts,bshv->bthv", p_BHTS, v_BSHV)


def _causal_softmax(scores_BHTS: Tensor, softmax_scale: float) -> Tensor:
    """Softmax over the rows that query t may see: 0..S-T+t."""
    t, s = scores_BHTS.shape[-2:]
    future_TS = torch.ones(t, s, dtype=torch.bool, device=scores_BHTS.device).triu(s - t + 1)
    return (scores_BHTS * softmax_scale).masked_fill(future_TS, float("-inf")).softmax(-1)
