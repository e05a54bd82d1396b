"""The ops of the domain ``shoal``: the PyTorch reference, or a node while a graph is traced.

Every function computes its op when called and emits the op's float form when torch.onnx is tracing.
The exporter later replaces float forms by int8 ones where the weights are quantized.

Shapes: B batch, T new tokens, S cached tokens, D hidden, H heads, C latent, R rope, N no-rope and
V value head size, E experts, K chosen experts, F expert width, W vocabulary, X = C + R; ".." any
leading dimensions. Float tensors are float32, ids int64.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shoal.export.model.attention import append_rows, attend
from shoal.export.model.routing import RoutingRule, choose_experts
from shoal.graphs.contract import OP_DOMAIN, OP_SET_VERSION

Shape = tuple[int | torch.SymInt, ...]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply ``x`` [.., in] by the transpose of ``weight`` [out, in]; returns [.., out]."""
    if torch.onnx.is_in_onnx_export():
        return _emit("FloatLinear", (x, weight), (*x.shape[:-1], weight.shape[0]))
    return functional.linear(x, weight)


def embedding(input_ids: Tensor, weight: Tensor) -> Tensor:
    """Rows ``input_ids`` int64 [..] of ``weight`` [W,D]; returns [.., D]."""
    if torch.onnx.is_in_onnx_export():
        return _emit("FloatEmbedding", (input_ids, weight), (*input_ids.shape, weight.shape[1]))
    return functional.embedding(input_ids, weight)


def route(logits: Tensor, bias: Tensor | None, rule: RoutingRule) -> tuple[Tensor, Tensor]:
    """Choose experts: ``logits`` [.., E] to ids int64 [.., K] and weights [.., K].

    See ``choose_experts`` for what is chosen.
    """
    if not torch.onnx.is_in_onnx_export():
        return choose_experts(logits, bias, rule)
    shape = (*logits.shape[:-1], rule.top_k)
    ids, weights = torch.onnx.ops.symbolic_multi_out(
        f"{OP_DOMAIN}::Route",
        (logits,) if bias is None else (logits, bias),
        attrs=asdict(rule) | {"norm_topk_prob": int(rule.norm_topk_prob)},
        dtypes=(torch.int64, torch.float32),
        shapes=(shape, shape),
        version=OP_SET_VERSION,
    )
    return ids, weights


def sparse_experts(
    x: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
) -> Tensor:
    """Weighted sum of the chosen experts: y = sum_k w_k down_k (silu(gate_k x) * (up_k x)).

    Args:
        x: [.., D].
        expert_ids: int64 [.., K]; E means no expert and adds nothing.
        expert_weights: [.., K].
        gate_up_E2FD: Rows gate0, up0, gate1, up1, .. of every expert.
        down_EDF: Output matrices.

    Returns:
        [.., D].
    """
    if torch.onnx.is_in_onnx_export():
        inputs = (x, expert_ids, expert_weights, gate_up_E2FD, down_EDF)
        attributes = {"num_experts_per_tok": expert_ids.shape[-1]}
        return _emit("FloatSparseExperts", inputs, tuple(x.shape), attributes)
    x_TD, ids_TK = x.flatten(0, -2), expert_ids.flatten(0, -2)
    weights_TK = expert_weights.flatten(0, -2)
    y_TD = torch.zeros_like(x_TD)
    for expert in torch.unique(ids_TK).tolist():
        if expert == len(gate_up_E2FD):
            continue
        token, choice = torch.where(ids_TK == expert)
        out = expert_forward(x_TD[token], gate_up_E2FD[expert], down_EDF[expert])
        y_TD.index_add_(0, token, out * weights_TK[token, choice, None])
    return y_TD.view_as(x)


def expert_forward(x_TD: Tensor, gate_up_2FD: Tensor, down_DF: Tensor) -> Tensor:
    """One expert, unweighted: down (silu(gate x) * (up x)), [T,D]."""
    both = functional.linear(x_TD, gate_up_2FD)
    inner = functional.silu(both[..., 0::2]) * both[..., 1::2]
    return functional.linear(inner, down_DF)


def latent_attention(
    q_nope_BTHN: Tensor,
    q_rope_BTHR: Tensor,
    latent_BTC: Tensor,
    k_rope_BTR: Tensor,
    cache_BSX: Tensor,
    w_uk_HNC: Tensor,
    w_uv_HVC: Tensor,
    softmax_scale: float,
) -> tuple[Tensor, Tensor]:
    """Write the new tokens' rows into the cache and attend causally to all of it.

    Args:
        q_nope_BTHN: Queries, part without rotation.
        q_rope_BTHR: Queries, rotated part.
        latent_BTC: Normalised latents of the new tokens.
        k_rope_BTR: Rotated keys of the new tokens, shared by all heads.
        cache_BSX: Rows of all tokens; the last T are free.
        w_uk_HNC: From latent to key.
        w_uv_HVC: From latent to value.
        softmax_scale: Factor of the scores.

    Returns:
        [B,T,H,V], and the cache with the new rows.
    """
    if not torch.onnx.is_in_onnx_export():
        cache_BSX = append_rows(cache_BSX, latent_BTC, k_rope_BTR)
        y = attend(q_nope_BTHN, q_rope_BTHR, cache_BSX, w_uk_HNC, w_uv_HVC, softmax_scale)
        return y, cache_BSX
    y, cache_out = torch.onnx.ops.symbolic_multi_out(
        f"{OP_DOMAIN}::FloatLatentAttention",
        (q_nope_BTHN, q_rope_BTHR, latent_BTC, k_rope_BTR, cache_BSX, w_uk_HNC, w_uv_HVC),
        attrs={"softmax_scale": softmax_scale},
        dtypes=(torch.float32, torch.float32),
        shapes=((*q_nope_BTHN.shape[:3], w_uv_HVC.shape[1]), tuple(cache_BSX.shape)),
        version=OP_SET_VERSION,
    )
    return y, cache_out


def fake_quantize(x: Tensor, block_size: int, terms: int = 1) -> Tensor:
    """Round ``x`` [.., K] to int8 and back, as the int8 ops do with their input.

    Each row is cut into blocks of ``block_size`` (a divisor of K) with one scale, max|x| / 127, and
    rounded half to even. A block of zeros stays zero. With two ``terms``, what that loses is
    rounded likewise and added, as PreciseLinear does.
    """
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // block_size, block_size)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    rounded = (torch.round(blocks / scale) * scale).reshape(x.shape)
    return rounded if terms == 1 else rounded + fake_quantize(x - rounded, block_size, terms - 1)


def _emit(
    name: str, inputs: tuple[Tensor, ...], shape: Shape, attributes: dict[str, Any] | None = None
) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{OP_DOMAIN}::{name}",
        inputs,
        attributes,
        dtype=torch.float32,
        shape=shape,
        version=OP_SET_VERSION,
    )
