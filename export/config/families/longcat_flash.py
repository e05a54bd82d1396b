"""LongCat-Flash: layers of two halves, with experts beside both of them, some of which do nothing.

Each half is a layer with latent attention and a dense network. The experts read what the first
half's network reads, and what they put out joins at the end of the second half. The router chooses
among the experts and as many "zero experts" more, which give their input back. The latents of
queries and keys are scaled, which is done to the weights of their norms.

Source: LongCat-Flash (arXiv 2509.01322), section 2; transformers, models/longcat_flash @ 5.23.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from shoal.export.config.families.family import Family
from shoal.export.config.values import ConfigReader

_MOST_ZERO_EXPERTS = 1024
_TENSOR = re.compile(r"model\.layers\.(\d+)\.([^.]+)\.(.+)")


def _read_extras(reader: ConfigReader, values: Mapping[str, Any]) -> dict[str, Any]:
    layers = reader.integer("num_layers") or 0
    found = values["num_hidden_layers"]
    if found not in (0, layers, 2 * layers):
        reader.refuse("num_hidden_layers", f"two for each of num_layers {layers}", found)
    rank, hidden = values["q_lora_rank"], max(values["hidden_size"], 1)
    if rank is None:
        reader.refuse("q_lora_rank", "a whole number", None)
    zero_experts = reader.integer("zero_expert_num", null=True) or 0
    if not 0 <= zero_experts <= _MOST_ZERO_EXPERTS:
        reader.refuse("zero_expert_num", f"0 to {_MOST_ZERO_EXPERTS}", zero_experts)
    return {
        "num_hidden_layers": 2 * layers,
        "num_zero_experts": zero_experts,
        "query_latent_scale": math.sqrt(hidden / max(rank or 1, 1)),
        "latent_scale": math.sqrt(hidden / max(values["kv_lora_rank"], 1)),
    }


def _tensor_name(name: str) -> str:
    """The checkpoint's name for a tensor of layer ``2 l`` or ``2 l + 1``: half 0 or 1 of ``l``."""
    match = _TENSOR.fullmatch(name)
    if match is None:
        return name
    layer, half = divmod(int(match[1]), 2)
    part, rest = match[2], match[3]
    if part == "mlp" and rest.startswith("gate."):
        rest = rest.replace("gate.weight", "classifier.weight").removeprefix("gate.")
        return f"model.layers.{layer}.mlp.router.{rest}"
    if part == "mlp" and rest.startswith("experts."):
        return f"model.layers.{layer}.{part}.{rest}"
    if part in ("mlp", "dense_mlp"):
        part = "mlps"
    return f"model.layers.{layer}.{part}.{half}.{rest}"


FAMILY = Family(
    model_types=("longcat_flash",),
    architectures=("LongcatFlashForCausalLM",),
    defaults={
        "vocab_size": 131072,
        "hidden_size": 6144,
        "num_hidden_layers": 0,
        "num_layers": 28,
        "num_attention_heads": 64,
        "intermediate_size": 12288,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 512,
        "zero_expert_num": 256,
        "n_shared_experts": 0,
        "num_experts_per_tok": 12,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 2,
        "routed_scaling_factor": 6.0,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e7,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    fixed={
        "norm_topk_prob": False,
        "router_bias": False,
        "zero_expert_type": "identity",
        "attention_method": "MLA",
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "n_shared_experts": 0,
    },
    aliases={
        "moe_topk": "num_experts_per_tok",
        "ffn_hidden_size": "intermediate_size",
        "expert_ffn_hidden_size": "moe_intermediate_size",
    },
    scoring_func="softmax",
    wiring="late_experts",
    extras=_read_extras,
    tensor_name=_tensor_name,
    # Of zero experts, as transformers saves them, and of the multi-token-prediction module.
    ignored_tensors=re.compile(r"model\.layers\.\d+\.mlp\.experts\.\d+\..*|model\.mtp\..*"),
)
