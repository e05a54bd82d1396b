"""Turn every float op of the shoal domain into its int8 form.

``FloatLinear(x, weight)`` becomes ``Linear(x, weight, weight_scales)`` and so on: the weight input
keeps its name and turns into uint8 codes, its block scales follow it as a new input. Everything
that is no shoal op with weights (norms, the router's matrix, biases) stays float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from shoal.graphs.contract import OP_DOMAIN
from shoal.graphs.parameters import Parameter
from shoal.graphs.passes.weights import new_weight, replace_initializers, weight_shape
from shoal.graphs.quantize import block_size_for
from shoal.graphs.recipes import Recipe, WeightFormat


@dataclass(frozen=True, kw_only=True)
class _Int8Form:
    """How one float op turns into its int8 form."""

    op_types: Mapping[tuple[int, int], str]  # (bits of the weight, terms of the input) -> op
    weight_inputs: tuple[int, ...]  # positions of the weights among the float op's inputs
    attributes: Callable[[ir.Node, WeightFormat], dict[str, int]]  # of the new node
    blocked_shape: bool = False  # the weight is declared as [N, K/block_size, block_size]


def _linear_attributes(node: ir.Node, stored: WeightFormat) -> dict[str, int]:
    n, k = weight_shape(node.inputs[1])
    return {"K": k, "N": n, "block_size": stored.block_size}


def _block_size_only(_: ir.Node, stored: WeightFormat) -> dict[str, int]:
    return {"block_size": stored.block_size}


_INT8_FORMS = {
    "FloatLinear": _Int8Form(
        op_types={(8, 1): "Linear", (8, 2): "PreciseLinear"},
        weight_inputs=(1,),
        attributes=_linear_attributes,
        blocked_shape=True,
    ),
    "FloatEmbedding": _Int8Form(
        op_types={(8, 1): "Embedding"}, weight_inputs=(1,), attributes=_block_size_only
    ),
    "FloatSparseExperts": _Int8Form(
        op_types={(8, 1): "SparseExperts", (4, 1): "Int4SparseExperts"},
        weight_inputs=(3, 4),
        attributes=_block_size_only,
    ),
    "FloatLatentAttention": _Int8Form(
        op_types={(8, 1): "LatentAttention"}, weight_inputs=(5, 6), attributes=_block_size_only
    ),
}


def quantize_weights(model: ir.Model, recipe: Recipe) -> dict[str, WeightFormat]:
    """Replace the float ops of ``model`` in place.

    Args:
        model: a graph whose weights are initializers without data (see ``passes.weights``).
        recipe: how to store each kind of weight; a tensor whose input dimension the recipe's block
            size does not divide takes the largest smaller one that does.

    Returns:
        The format of each weight that is not float32 any more, by name.

    Raises:
        ExportError: an input dimension is not divisible by 16.
    """
    formats: dict[str, WeightFormat] = {}
    replacements: dict[str, list[ir.Value]] = {}
    for node in list(model.graph):
        form = _INT8_FORMS.get(node.op_type) if node.domain == OP_DOMAIN else None
        if form is not None:
            _replace(model.graph, node, form, recipe, formats, replacements)
    replace_initializers(model.graph, replacements)
    return formats


def _stored_as(node: ir.Node, form: _Int8Form, recipe: Recipe) -> WeightFormat:
    """The one format of all weights of a node, which makes do with what its op offers."""
    weights = [node.inputs[i] for i in form.weight_inputs]
    wanted = recipe.format_of(Parameter.parse((weights[0] and weights[0].name) or ""))
    assert wanted is not None, f"{node.op_type}: its weights have a kind"
    return replace(
        wanted,
        block_size=min(block_size_for(weight_shape(w)[-1], wanted.block_size) for w in weights),
    )


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    form: _Int8Form,
    recipe: Recipe,
    formats: dict[str, WeightFormat],
    replacements: dict[str, list[ir.Value]],
) -> None:
    stored = _stored_as(node, form, recipe)
    inputs: list[ir.Value | None] = []
    for position, value in enumerate(node.inputs):
        if position not in form.weight_inputs:
            inputs.append(value)
            continue
        assert value is not None
        assert value.name is not None
        if value.name not in replacements:
            replacements[value.name] = _stored_pair(value, stored, form.blocked_shape)
        formats[value.name] = stored
        inputs.extend(replacements[value.name])
    attributes: dict[str, ir.Attr] = dict(node.attributes)
    for key, number in form.attributes(node, stored).items():
        attributes[key] = ir.AttrInt64(key, number)
    new_node = ir.Node(
        OP_DOMAIN,
        form.op_types[stored.bits, stored.input_terms],
        inputs,
        attributes,
        num_outputs=len(node.outputs),
        name=node.name,
    )
    for old, new in zip(node.outputs, new_node.outputs, strict=True):
        new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(node, new_node)
    ir.convenience.replace_all_uses_with(node.outputs, new_node.outputs, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _stored_pair(weight: ir.Value, stored: WeightFormat, blocked_shape: bool) -> list[ir.Value]:
    """The codes and the scales that take the place of a float weight."""
    shape = weight_shape(weight)
    blocks = (*shape[:-1], shape[-1] // stored.block_size)
    assert math.prod(blocks) * stored.block_size == math.prod(shape)
    codes = (*blocks, stored.block_size) if blocked_shape else shape
    codes = (*codes[:-1], codes[-1] * stored.bits // 8)
    name = weight.name or ""
    return [
        new_weight(name, ir.DataType.UINT8, codes),
        new_weight(str(Parameter.parse(name).scales), ir.DataType.FLOAT, blocks),
    ]
