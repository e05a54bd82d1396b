"""Fill in the manifest of a new bundle."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

from shoal.export.config.model_config import ModelConfig
from shoal.export.fidelity.head_comparison import Fidelity
from shoal.export.tokenizer.special_tokens import SpecialTokens
from shoal.graphs.manifest import FileInfo, Manifest, ModelInfo
from shoal.graphs.parameters import Parameter
from shoal.graphs.passes.weights import WeightPlan
from shoal.graphs.recipes import WeightFormat


def build_manifest(
    *,
    config: ModelConfig,
    raw_config: dict[str, Any],
    special_tokens: SpecialTokens,
    num_mtp_layers: int,
    weights: str,
    formats: dict[str, WeightFormat],
    plan: WeightPlan,
    graphs: dict[str, str],
    files: dict[str, FileInfo],
    fidelity: Fidelity | None,
    notes: tuple[str, ...],
) -> Manifest:
    """The manifest of a bundle whose files are all written."""
    moe_layers = tuple(i for i in range(config.num_hidden_layers) if config.is_moe_layer(i))
    parameters, active = count_parameters(config, plan)
    return Manifest(
        shoal_version=version("shoal"),
        weights=weights,
        formats=formats,
        model=ModelInfo(
            model_type=config.model_type,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            kv_lora_rank=config.kv_lora_rank,
            qk_nope_head_dim=config.qk_nope_head_dim,
            qk_rope_head_dim=config.qk_rope_head_dim,
            v_head_dim=config.v_head_dim,
            max_position_embeddings=config.max_position_embeddings,
            moe_layers=moe_layers,
            n_routed_experts=config.n_routed_experts if moe_layers else 0,
            num_experts_per_tok=config.num_experts_per_tok if moe_layers else 0,
            num_mtp_layers=num_mtp_layers,
            parameters=parameters,
            active_parameters=active,
            eos_token_ids=special_tokens.eos_token_ids,
            bos_token_id=special_tokens.bos_token_id,
        ),
        graphs=graphs,
        files=dict(sorted(files.items())),
        tensors=plan.tensors,
        token_read_bytes=token_read_bytes(config, plan),
        config=raw_config,
        fidelity=fidelity.to_json() if fidelity is not None else None,
        notes=notes,
    )


def token_share(config: ModelConfig, name: str) -> float:
    """Which part of tensor ``name`` one decoded token of the main model reads."""
    parameter = Parameter.parse(name)
    if parameter.is_mtp:
        return 0.0
    if parameter.kind == "embedding" and not config.tie_word_embeddings:
        return 1 / config.vocab_size
    if parameter.is_routed_experts:
        # Zero experts have no weights; a router in balance chooses each as often as the others.
        return config.num_experts_per_tok / (config.n_routed_experts + config.num_zero_experts)
    return 1.0


def count_parameters(config: ModelConfig, plan: WeightPlan) -> tuple[int, int]:
    """Distinct parameters, and those that take part in one token of the main model."""
    counts = {
        name: math.prod(info.shape)
        for name, info in plan.tensors.items()
        if not Parameter.parse(name).is_scales
    }
    active = sum(count * token_share(config, name) for name, count in counts.items())
    return sum(counts.values()), round(active)


def token_read_bytes(config: ModelConfig, plan: WeightPlan) -> int:
    """Bytes of weights that one decoded token of the main model reads."""
    return round(sum(i.size * token_share(config, name) for name, i in plan.tensors.items()))
