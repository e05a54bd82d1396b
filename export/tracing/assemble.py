"""Build the graphs of a bundle: trace each kind of module once, stack, quantize, place.

decoder.onnx = entry + layers + norm      head.onnx = head      mtp.onnx = fusion + layer + norm
batch.onnx = decoder.onnx with caches of several contexts

All but head are written once for each type of the latent cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.wiring import (
    EXPERT_IDS,
    EXPERT_WEIGHTS,
    HIDDEN,
    Block,
    Blocks,
    layer_blocks,
    mtp_blocks,
    states_of,
    walk,
)
from shoal.export.tracing.stack import GraphAssembly
from shoal.export.tracing.templates import trace_templates
from shoal.export.tracing.trace import Template
from shoal.graphs import contract
from shoal.graphs.cache_types import CACHE_TYPES, CacheType, cache_block_size, graph_role
from shoal.graphs.contract import OP_DOMAIN
from shoal.graphs.functions import function_protos
from shoal.graphs.layer_state import state_input, state_output
from shoal.graphs.parameters import EMBEDDING, FINAL_NORM, HEAD, Place
from shoal.graphs.passes.change_cache import change_cache
from shoal.graphs.passes.quantize_weights import quantize_weights
from shoal.graphs.passes.split_contexts import split_contexts
from shoal.graphs.passes.weights import WeightPlan, place_weights
from shoal.graphs.recipes import Recipe, WeightFormat

_FLOAT, _INT64 = ir.DataType.FLOAT, ir.DataType.INT64


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """The graphs of a bundle and the place of every weight they share.

    Attributes:
        models: ONNX models by role (decoder, batch, head, mtp).
        plan: where each tensor goes in weights.bin, in writing order.
        formats: of the weights that are not float32, by parameter name.
    """

    models: dict[str, onnx.ModelProto]
    plan: WeightPlan
    formats: dict[str, WeightFormat]


def build_graphs(config: ModelConfig, *, num_mtp_layers: int, recipe: Recipe | None) -> Graphs:
    """Build every graph of the bundle for ``config``.

    Args:
        config: of the checkpoint.
        num_mtp_layers: 1 to build mtp.onnx, else 0.
        recipe: how to store weights, or None to keep them all float32.
    """
    templates = trace_templates(config, with_mtp=num_mtp_layers > 0)
    assemblies = {"decoder": _decoder(config, templates), "head": _head(config, templates)}
    if num_mtp_layers:
        assemblies["mtp"] = _mtp(config, templates)
    plan = WeightPlan()
    formats: dict[str, WeightFormat] = {}
    models = {}
    for role, assembly in assemblies.items():
        model = assembly.model([], doc=f"shoal {role} graph of a {config.model_type} model")
        if recipe is not None:
            formats |= quantize_weights(model, recipe)
        place_weights(model, plan, {name for name, form in formats.items() if form.bits == 4})
        for cache_type in CACHE_TYPES if role != "head" else CACHE_TYPES[:1]:
            if cache_type == "int8" and cache_block_size(config.kv_lora_rank) is None:
                continue
            changed = _with_cache(model, cache_type, config)
            models[graph_role(role, cache_type)] = _finish(changed)
            if role == "decoder":
                split_contexts(changed, contract.BATCH_SLOTS)
                models[graph_role("batch", cache_type)] = _finish(changed)
    return Graphs(models=models, plan=plan, formats=formats)


def _with_cache(model: ir.Model, cache_type: CacheType, config: ModelConfig) -> ir.Model:
    """A finished graph with caches of a type; ``model`` itself, with float32 ones, is kept."""
    changed = model.clone()
    if cache_type != "float32":
        change_cache(
            changed,
            cache_type,
            kv_lora_rank=config.kv_lora_rank,
            qk_rope_head_dim=config.qk_rope_head_dim,
        )
    return changed


def _finish(model: ir.Model) -> onnx.ModelProto:
    """Add the bodies of the shoal ops that are used, so that any onnxruntime can run the model."""
    nodes = [
        (node.op_type, {key: attribute.value for key, attribute in node.attributes.items()})
        for node in model.graph
        if node.domain == OP_DOMAIN
    ]
    for proto in function_protos(nodes):
        body = ir.serde.deserialize_function(proto)
        model.functions[body.identifier()] = body
    return ir.to_proto(model)


def _decoder(config: ModelConfig, templates: dict[str, Template]) -> GraphAssembly:
    graph = GraphAssembly("decoder")
    input_ids = graph.input("input_ids", _INT64, [1, "T"])
    position_ids = graph.input("position_ids", _INT64, [1, "T"])
    layers = [layer_blocks(config, layer) for layer in range(config.num_hidden_layers)]
    states = [_state_inputs(graph, blocks, layer) for layer, blocks in enumerate(layers)]
    (hidden,) = graph.stamp(templates["embedding"], [input_ids], "embed/", f"{EMBEDDING.section}.")
    cos, sin = graph.stamp(templates["rope"], [position_ids], "rope/", "")
    flow = {HIDDEN: hidden, "cos": cos, "sin": sin}
    found = []
    for layer, (blocks, state) in enumerate(zip(layers, states, strict=True)):
        stamp = _stamper(graph, templates, f"layers.{layer}/", Place.LAYER.prefix(layer))
        found.append(walk(blocks, flow, state, stamp))
    (hidden,) = graph.stamp(templates["norm"], [flow[HIDDEN]], "norm/", f"{FINAL_NORM.section}.")
    graph.output("hidden", hidden, _FLOAT, [1, "T", config.hidden_size])
    for layer, (blocks, (state, chosen)) in enumerate(zip(layers, found, strict=True)):
        _layer_outputs(graph, config, layer, blocks, state, chosen)
    return graph


def _head(config: ModelConfig, templates: dict[str, Template]) -> GraphAssembly:
    graph = GraphAssembly("head")
    hidden = graph.input("hidden", _FLOAT, [1, "T", config.hidden_size])
    weight = EMBEDDING if config.tie_word_embeddings else HEAD
    (logits,) = graph.stamp(templates["head"], [hidden], "head/", f"{weight.section}.")
    graph.output("logits", logits, _FLOAT, [1, "T", config.vocab_size])
    return graph


def _mtp(config: ModelConfig, templates: dict[str, Template]) -> GraphAssembly:
    graph, blocks = GraphAssembly("mtp"), mtp_blocks(config)
    input_ids = graph.input("input_ids", _INT64, [1, "T"])
    position_ids = graph.input("position_ids", _INT64, [1, "T"])
    hidden = graph.input("hidden", _FLOAT, [1, "T", config.hidden_size])
    state = _state_inputs(graph, blocks, 0)
    (embedded,) = graph.stamp(
        templates["embedding"], [input_ids], "embed/", f"{EMBEDDING.section}."
    )
    cos, sin = graph.stamp(templates["rope"], [position_ids], "rope/", "")
    (x,) = graph.stamp(templates["fusion"], [embedded, hidden], "mtp.0/", Place.MTP.prefix())
    flow = {HIDDEN: x, "cos": cos, "sin": sin}
    state, chosen = walk(
        blocks, flow, state, _stamper(graph, templates, "mtp.0/", Place.MTP_LAYER.prefix())
    )
    (x,) = graph.stamp(templates["norm"], [flow[HIDDEN]], "mtp.0/", f"{Place.MTP.prefix()}norm.")
    graph.output("hidden_out", x, _FLOAT, [1, "T", config.hidden_size])
    _layer_outputs(graph, config, 0, blocks, state, chosen)
    return graph


def _stamper(
    graph: GraphAssembly, templates: dict[str, Template], prefix: str, weight_prefix: str
) -> Callable[[Block, list[ir.Value]], list[ir.Value]]:
    """What stamps the blocks of one layer; see ``GraphAssembly.stamp`` for the prefixes."""
    return lambda block, values: graph.stamp(templates[block.name], values, prefix, weight_prefix)


def _state_inputs(graph: GraphAssembly, blocks: Blocks, layer: int) -> dict[str, ir.Value]:
    return {
        state.name: graph.input(state_input(state.name, layer), _FLOAT, [1, *state.shape])
        for state in states_of(blocks)
    }


def _layer_outputs(
    graph: GraphAssembly,
    config: ModelConfig,
    layer: int,
    blocks: Blocks,
    state: dict[str, ir.Value],
    chosen: dict[str, ir.Value],
) -> None:
    for kind in states_of(blocks):
        name = state_output(kind.name, layer)
        graph.output(name, state[kind.name], _FLOAT, [1, *kind.shape])
    if chosen:
        shape: list[int | str] = [1, "T", config.num_experts_per_tok]
        names = contract.expert_ids_output(layer), contract.expert_weights_output(layer)
        graph.output(names[0], chosen[EXPERT_IDS], _INT64, shape)
        graph.output(names[1], chosen[EXPERT_WEIGHTS], _FLOAT, shape)
