"""Which tensors of a checkpoint make the parameters of one layer after another.

Parameters keep the checkpoint's names without the leading ``model.``, with three exceptions:

    layers.{l}.self_attn.w_uk, .w_uv          the two parts of kv_b_proj
    layers.{l}.mlp.experts.gate_up, .down     all experts in one tensor; gate0, up0, gate1, ..
    mtp.{k}...                                layers past the last one of the main model

The reference modules say which parameters there are and of what shape; graphs/parameters.py lists
their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from shoal.export.checkpoint.sources import (
    HeadPart,
    Shape,
    Source,
    SplitDown,
    SplitGateUp,
    StackedGateUp,
    Zeros,
)
from shoal.export.checkpoint.stored_tensors import TensorHeader
from shoal.export.config.model_config import ModelConfig
from shoal.export.model.transformer import CausalLM
from shoal.graphs.parameters import EMBEDDING, FINAL_NORM, HEAD, Parameter, Place

KEYS_AND_VALUES = "self_attn.kv_b_proj.weight"
"""Each head's key rows, then its value rows: ``w_uk`` and ``w_uv``."""
EXPERTS = "mlp.experts."
GATE_UP = "mlp.experts.gate_up"
ROUTER_BIAS = "mlp.gate.e_score_correction_bias"
MOE_OUTPUT_NORM = "post_mlp_layernorm.weight"
"""A norm in ``mlp``, stored one level higher in published files and for dense layers, too."""
MTP_NAMES = {"norm.weight": "shared_head.norm.weight"}
"""Parameters of an MTP module that the checkpoint calls otherwise."""
BRANCH_ENDS = ("self_attn.o_proj.", "mlp.down_proj.", "mlp.shared_experts.down_proj.")
"""What a layer's two contributions to the hidden state end with, beside the routed experts."""


def model_sources(
    config: ModelConfig, headers: Mapping[str, TensorHeader], num_mtp_layers: int
) -> Iterator[Source]:
    """Where every parameter of a model comes from, in the order of its layers.

    Args:
        config: of the model.
        headers: of the checkpoint's tensors, which say how its experts are stored.
        num_mtp_layers: multi-token-prediction modules to build.
    """
    with torch.device("meta"):
        model = CausalLM(config, num_mtp_layers)
    for name, weight in model.named_parameters():
        yield _source(config, Parameter.parse(name), tuple(weight.shape), headers)


def _source(
    config: ModelConfig, parameter: Parameter, shape: Shape, headers: Mapping[str, TensorHeader]
) -> Source:
    """Where a parameter comes from.

    Args:
        config: of the model.
        parameter: its name.
        shape: of the parameter.
        headers: of the checkpoint's tensors.
    """
    if parameter.place is Place.MODEL:
        return _of_model(config, parameter, shape)
    layer = parameter.index + (config.num_hidden_layers if parameter.is_mtp else 0)
    theirs = layer_prefix(layer)
    if parameter.place is Place.MTP:
        tensor = theirs + MTP_NAMES.get(parameter.part, parameter.part)
        return Source(name=str(parameter), shape=shape, tensors={tensor: shape})
    return _of_layer(config, parameter, theirs, shape, headers)


def _of_model(config: ModelConfig, parameter: Parameter, shape: Shape) -> Source:
    """The source of a parameter outside all layers."""
    scale = {EMBEDDING: config.embedding_scale, FINAL_NORM: config.logits_scale}
    if config.tie_word_embeddings:
        scale[FINAL_NORM] /= config.embedding_scale  # the head reads the scaled table
    name = str(parameter)
    tensor = name if parameter == HEAD else f"model.{name}"
    return Source(name=name, shape=shape, tensors={tensor: shape}, scale=scale.get(parameter, 1.0))


def _of_layer(
    config: ModelConfig,
    parameter: Parameter,
    theirs: str,
    shape: Shape,
    headers: Mapping[str, TensorHeader],
) -> Source:
    """The source of a parameter of a layer, whose tensors' names begin with ``theirs``."""
    name, part = str(parameter), parameter.part
    if parameter.kind == "attention_latent":
        return _key_or_value_part(config, name, theirs + KEYS_AND_VALUES, shape)
    if parameter.is_routed_experts:
        is_first = part == GATE_UP
        return _experts(config, name, theirs + EXPERTS, shape, headers, is_first=is_first)
    tensor = theirs + part
    if part == ROUTER_BIAS and config.router_bias_is_optional and tensor not in headers:
        return Zeros(name=name, shape=shape, tensors={})
    if part == f"mlp.{MOE_OUTPUT_NORM}" and tensor not in headers:
        tensor = theirs + MOE_OUTPUT_NORM
    latent_scales = {
        "self_attn.q_a_layernorm.weight": config.query_latent_scale,
        "self_attn.kv_a_layernorm.weight": config.latent_scale,
    }
    scale = config.residual_scale if part.startswith(BRANCH_ENDS) else latent_scales.get(part, 1.0)
    return Source(name=name, shape=shape, tensors={tensor: shape}, scale=scale)


def _key_or_value_part(config: ModelConfig, name: str, tensor: str, shape: Shape) -> Source:
    heads, _, rank = shape
    key, value = config.qk_nope_head_dim, config.v_head_dim
    return HeadPart(
        name=name,
        shape=shape,
        tensors={tensor: (heads * (key + value), rank)},
        head_rows=key + value,
        first_row=0 if name.endswith("w_uk") else key,
    )


def _experts(
    config: ModelConfig,
    name: str,
    theirs: str,
    shape: Shape,
    headers: Mapping[str, TensorHeader],
    *,
    is_first: bool,
) -> Source:
    """The source of all routed experts' first or second matrices."""
    experts = config.n_routed_experts
    hidden, width = config.hidden_size, config.moe_intermediate_size
    if f"{theirs}gate_up_proj" in headers or f"{theirs}down_proj" in headers:
        if is_first:
            return StackedGateUp(name=name, shape=shape, tensors={f"{theirs}gate_up_proj": shape})
        tensors = {f"{theirs}down_proj": shape}
        return Source(name=name, shape=shape, tensors=tensors, scale=config.residual_scale)
    if is_first:
        names = (
            f"{theirs}{expert}.{part}_proj.weight"
            for expert in range(experts)
            for part in ("gate", "up")
        )
        return SplitGateUp(name=name, shape=shape, tensors=dict.fromkeys(names, (width, hidden)))
    names = (f"{theirs}{expert}.down_proj.weight" for expert in range(experts))
    tensors = dict.fromkeys(names, (hidden, width))
    return SplitDown(name=name, shape=shape, tensors=tensors, scale=config.residual_scale)


def layer_prefix(layer: int) -> str:
    """What the names of a layer's tensors begin with."""
    return f"model.layers.{layer}."
