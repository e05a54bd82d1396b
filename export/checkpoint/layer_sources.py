"""Which tensors of a checkpoint make the parameters of one layer after another, and their shapes.

Parameters keep the checkpoint's names without the leading ``model.``, with three exceptions:

    layers.{l}.self_attn.w_uk, .w_uv          the two parts of kv_b_proj
    layers.{l}.mlp.experts.gate_up, .down     all experts in one tensor; gate0, up0, gate1, ..
    mtp.{k}...                                layers past the last one of the main model

All of them are listed in graphs/parameters.py. The tables below spell shapes in sizes separated
by blanks; ``_sizes`` says what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shoal.export.checkpoint.safetensors_files import TensorHeader
from shoal.export.checkpoint.sources import (
    HeadPart,
    Shape,
    Source,
    SplitDown,
    SplitGateUp,
    StackedGateUp,
    Zeros,
)
from shoal.export.config.model_config import ModelConfig
from shoal.graphs.parameters import EMBEDDING, FINAL_NORM, HEAD, Place

NORMS = {"input_layernorm.weight": "D", "post_attention_layernorm.weight": "D"}
ATTENTION = {
    "self_attn.kv_a_proj_with_mqa.weight": "C+R D",
    "self_attn.kv_a_layernorm.weight": "C",
    "self_attn.o_proj.weight": "D HV",
}
ATTENTION_BIASES = {"self_attn.kv_a_proj_with_mqa.bias": "C+R", "self_attn.o_proj.bias": "D"}
QUERY = {"self_attn.q_proj.weight": "H(N+R) D"}
QUERY_LOW_RANK = {
    "self_attn.q_a_proj.weight": "L D",
    "self_attn.q_a_layernorm.weight": "L",
    "self_attn.q_b_proj.weight": "H(N+R) L",
}
QUERY_LOW_RANK_BIASES = {"self_attn.q_a_proj.bias": "L"}
DENSE = {
    "mlp.gate_proj.weight": "I D",
    "mlp.up_proj.weight": "I D",
    "mlp.down_proj.weight": "D I",
}
DENSE_BESIDE_EXPERTS = {f"dense_{name}": shape for name, shape in DENSE.items()}
ROUTER = {"mlp.gate.weight": "E+Z D"}
ROUTER_BIAS = {"mlp.gate.e_score_correction_bias": "E+Z"}
MOE_OUTPUT_NORM = "post_mlp_layernorm.weight"
"""A norm in ``mlp``, stored one level higher in published files and for dense layers, too."""
SHARED_EXPERTS = {
    "mlp.shared_experts.gate_proj.weight": "SF D",
    "mlp.shared_experts.up_proj.weight": "SF D",
    "mlp.shared_experts.down_proj.weight": "D SF",
}
MTP = {
    "enorm.weight": ("enorm.weight", "D"),
    "hnorm.weight": ("hnorm.weight", "D"),
    "eh_proj.weight": ("eh_proj.weight", "D 2D"),
    "norm.weight": ("shared_head.norm.weight", "D"),
}
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
    sizes = _sizes(config)
    embedding, norm = config.embedding_scale, config.logits_scale
    if config.tie_word_embeddings:
        norm /= embedding  # the head reads the scaled table
    yield _whole(str(EMBEDDING), "model.embed_tokens.weight", "W D", sizes, embedding)
    for layer in range(config.num_hidden_layers):
        is_moe = config.is_moe_layer(layer)
        ours, theirs = Place.LAYER.prefix(layer), layer_prefix(layer)
        yield from _layer(config, ours, theirs, is_moe, headers)
    yield _whole(str(FINAL_NORM), "model.norm.weight", "D", sizes, norm)
    if not config.tie_word_embeddings:
        yield _whole(str(HEAD), "lm_head.weight", "W D", sizes)
    for module in range(num_mtp_layers):
        theirs = layer_prefix(config.num_hidden_layers + module)
        for name, (tensor, shape) in MTP.items():
            yield _whole(Place.MTP.prefix(module) + name, theirs + tensor, shape, sizes)
        ours = Place.MTP_LAYER.prefix(module)
        yield from _layer(config, ours, theirs, config.is_moe, headers)


def _whole(
    name: str, tensor: str, shape: str, sizes: Mapping[str, int], scale: float = 1.0
) -> Source:
    numbers = tuple(sizes[size] for size in shape.split())
    return Source(name=name, shape=numbers, tensors={tensor: numbers}, scale=scale)


def _layer(
    config: ModelConfig,
    ours: str,
    theirs: str,
    is_moe: bool,
    headers: Mapping[str, TensorHeader],
) -> Iterator[Source]:
    """Sources of one decoder layer; ``ours`` and ``theirs`` are the names' prefixes."""
    low_rank = config.q_lora_rank is not None
    same = NORMS | ATTENTION | (QUERY_LOW_RANK if low_rank else QUERY)
    if config.attention_bias:
        same |= ATTENTION_BIASES | (QUERY_LOW_RANK_BIASES if low_rank else {})
    if is_moe:
        same |= ROUTER
        same |= SHARED_EXPERTS if config.n_shared_experts else {}
        same |= DENSE_BESIDE_EXPERTS if config.has_late_experts else {}
    else:
        same |= DENSE
    sizes = _sizes(config)
    latent_scales = {
        "self_attn.q_a_layernorm.weight": config.query_latent_scale,
        "self_attn.kv_a_layernorm.weight": config.latent_scale,
    }
    for name, shape in same.items():
        scale = config.residual_scale if name.startswith(BRANCH_ENDS) else 1.0
        scale *= latent_scales.get(name, 1.0)
        yield _whole(ours + name, theirs + name, shape, sizes, scale)
    if is_moe:
        yield from _moe_extras(config, ours, theirs, headers)
    yield from _key_and_value_parts(config, f"{ours}self_attn.", f"{theirs}self_attn.")
    if is_moe:
        yield from _experts(config, f"{ours}mlp.experts.", f"{theirs}mlp.experts.", headers)


def _moe_extras(
    config: ModelConfig, ours: str, theirs: str, headers: Mapping[str, TensorHeader]
) -> Iterator[Source]:
    """What only some layers with experts have."""
    sizes = _sizes(config)
    if config.topk_method == "noaux_tc":
        for name, shape in ROUTER_BIAS.items():
            bias = _whole(ours + name, theirs + name, shape, sizes)
            if config.router_bias_is_optional and theirs + name not in headers:
                bias = Zeros(name=bias.name, shape=bias.shape, tensors={})
            yield bias
    if config.has_moe_output_norm:
        inner = f"{theirs}mlp.{MOE_OUTPUT_NORM}"
        tensor = inner if inner in headers else theirs + MOE_OUTPUT_NORM
        yield _whole(f"{ours}mlp.{MOE_OUTPUT_NORM}", tensor, "D", sizes)


def _key_and_value_parts(config: ModelConfig, ours: str, theirs: str) -> Iterator[Source]:
    """Each head of kv_b_proj has its key rows first, then its value rows."""
    heads, rank = config.num_attention_heads, config.kv_lora_rank
    key, value = config.qk_nope_head_dim, config.v_head_dim
    tensors: dict[str, Shape] = {f"{theirs}kv_b_proj.weight": (heads * (key + value), rank)}
    for name, first_row, rows in (("w_uk", 0, key), ("w_uv", key, value)):
        yield HeadPart(
            name=ours + name,
            shape=(heads, rows, rank),
            tensors=tensors,
            head_rows=key + value,
            first_row=first_row,
        )


def _experts(
    config: ModelConfig, ours: str, theirs: str, headers: Mapping[str, TensorHeader]
) -> Iterator[Source]:
    experts, hidden = config.n_routed_experts, config.hidden_size
    width, scale = config.moe_intermediate_size, config.residual_scale
    gate_up, down = (experts, 2 * width, hidden), (experts, hidden, width)
    if f"{theirs}gate_up_proj" in headers or f"{theirs}down_proj" in headers:
        yield StackedGateUp(
            name=f"{ours}gate_up", shape=gate_up, tensors={f"{theirs}gate_up_proj": gate_up}
        )
        yield Source(
            name=f"{ours}down", shape=down, tensors={f"{theirs}down_proj": down}, scale=scale
        )
        return
    yield SplitGateUp(
        name=f"{ours}gate_up",
        shape=gate_up,
        tensors={
            f"{theirs}{expert}.{part}_proj.weight": (width, hidden)
            for expert in range(experts)
            for part in ("gate", "up")
        },
    )
    yield SplitDown(
        name=f"{ours}down",
        shape=down,
        tensors={
            f"{theirs}{expert}.down_proj.weight": (hidden, width) for expert in range(experts)
        },
        scale=scale,
    )


def _sizes(config: ModelConfig) -> dict[str, int]:
    return {
        "D": config.hidden_size,
        "2D": 2 * config.hidden_size,
        "W": config.vocab_size,
        "L": config.q_lora_rank or 0,
        "C": config.kv_lora_rank,
        "C+R": config.cache_row_size,
        "H(N+R)": config.num_attention_heads * config.qk_head_dim,
        "HV": config.num_attention_heads * config.v_head_dim,
        "I": config.intermediate_size,
        "E+Z": config.n_routed_experts + config.num_zero_experts,
        "SF": config.n_shared_experts * config.moe_intermediate_size,
    }


def layer_prefix(layer: int) -> str:
    """What the names of a layer's tensors begin with."""
    return f"model.layers.{layer}."
