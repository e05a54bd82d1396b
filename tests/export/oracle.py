"""Random models of transformers' own classes, the oracle of the parity tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
)
from transformers.utils import logging

_logging: Any = logging
_logging.disable_progress_bar()
_logging.set_verbosity_error()

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-2,
    "pad_token_id": None,
}

V3_SIZES = {**SIZES, "n_group": 4, "topk_group": 2, "num_mtp_layers": 0}
V2_SIZES = {**SIZES, "n_group": None, "topk_group": None, "topk_method": "greedy"}


def make_v3(**overrides: Any) -> Any:
    """A random V3 model."""
    values = {**V3_SIZES, "num_key_value_heads": _heads(overrides), **overrides}
    return randomize(DeepseekV3ForCausalLM(_eager(DeepseekV3Config(**values))))


def make_v2(**overrides: Any) -> Any:
    """A random V2 model."""
    values = {**V2_SIZES, "num_key_value_heads": _heads(overrides), **overrides}
    return randomize(DeepseekV2ForCausalLM(_eager(DeepseekV2Config(**values))))


def load(folder: Path) -> Any:
    """The V3 model that transformers loads from ``folder``, in float32."""
    model: Any = DeepseekV3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def save(model: nn.Module, folder: Path) -> Path:
    """Write ``model`` as transformers does."""
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def raw_config(folder: Path) -> dict[str, Any]:
    """The config.json of ``folder``."""
    content = json.loads((folder / "config.json").read_text())
    assert isinstance(content, dict)
    return content


def run(model: Any, input_ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits [B,T,W], and the expert ids [B*T,K] of every MoE layer."""
    chosen: list[Tensor] = []
    routers = [
        getattr(layer.mlp, name)
        for layer in model.model.layers
        for name in ("gate", "router")
        if hasattr(layer.mlp, name)
    ]
    hooks = [
        router.register_forward_hook(lambda _m, _x, out: chosen.append(out[2]))
        for router in routers
    ]
    with torch.inference_mode():
        logits = model(input_ids).logits
    for hook in hooks:
        hook.remove()
    return logits, chosen


def _heads(overrides: dict[str, Any]) -> int:
    heads = {**SIZES, **overrides}["num_attention_heads"]
    assert isinstance(heads, int)
    return heads


def _eager(config: Any) -> Any:
    config._attn_implementation = "eager"
    return config


def randomize(model: Any, gain: float = 1.5) -> Any:
    """Weights large enough for peaked attention, decided routers and logits of order 1 to 10.

    ``gain`` is what a matrix does to the size of a vector.
    """
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "norm" in name:
                tensor.copy_(1 + 0.2 * torch.randn(tensor.shape, generator=generator))
            elif tensor.dim() == 1 and "inv_freq" not in name:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif tensor.dim() > 1:
                std = gain / tensor.shape[-1] ** 0.5
                tensor.copy_(std * torch.randn(tensor.shape, generator=generator))
    return model.eval()
