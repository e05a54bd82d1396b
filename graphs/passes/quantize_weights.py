"""Turn every float op of the shoal domain into its int8 form.

``FloatLinear(x, weight)`` becomes ``Linear(x, weight, weight_scales)`` and so on: the weight input
keeps its name and turns into uint8, its block scales follow it as a new input. Everything that is
no shoal op with weights (norms, the router's matrix, biases) stays float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from shoal.graphs.contract import OP_DOMAIN
from shoal.graphs.passes.weights import new_weight, replace_initializers, weight_shape
from shoal.graphs.quantize import block_size_for

SCALES_SUFFIX = "_scales"


@dataclass(frozen=True, kw_only=True)
class _Int8Form:
    """How one float op turns into its int8 form."""

    op_type: str
    weight_inputs: tuple[int, ...]  # positions of the weights among the float op's inputs
    attributes: Callable[[ir.Node, int], dict[str, int]]  # (float node, block size) -> new ones
    blocked_shape: bool = False  # the weight is declared as [N, K/block_size, block_size]


def _linear_attributes(node: ir.Node, block_size: int) -> dict[str, int]:
    n, k = weight_shape(node.inputs[1])
    return {"K": k, "N": n, "block_size": block_size}


def _block_size_only(_: ir.Node, block_size: int) -> dict[str, int]:
    return {"block_size": block_size}


_INT8_FORMS = {
    "FloatLinear": _Int8Form(
        op_type="Linear", weight_inputs=(1,), attributes=_linear_attributes, blocked_shape=True
    ),
    "FloatEmbedding": _Int8Form(
        op_type="Embedding", weight_inputs=(1,), attributes=_block_size_only
    ),
    "FloatSparseExperts": _Int8Form(
        op_type="SparseExperts", weight_inputs=(3, 4), attributes=_block_size_only
    ),
    "FloatLatentAttention": _Int8Form(
        op_type="LatentAttention", weight_inputs=(5, 6), attributes=_block_size_only
    ),
}


def quantize_weights(model: ir.Model, preferred_block_size: int) -> dict[str, int]:
    """Replace the float ops of ``model`` in place.

    Args:
        model: a graph whose weights are initializers without data (see ``passes.weights``).
        preferred_block_size: weights per scale, 16 to 256, a power of two; a tensor whose input
            dimension it does not divide takes the largest smaller one that does.

    Returns:
        The block size of each weight that became int8, by name.

    Raises:
        ExportError: an input dimension is not divisible by 16.
    """
    block_sizes: dict[str, int] = {}
    replacements: dict[str, list[ir.Value]] = {}
    for node in list(model.graph):
        form = _INT8_FORMS.get(node.op_type) if node.domain == OP_DOMAIN else None
        if form is not None:
            _replace(model.graph, node, form, preferred_block_size, block_sizes, replacements)
    replace_initializers(model.graph, replacements)
    return block_sizes


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    form: _Int8Form,
    preferred: int,
    block_sizes: dict[str, int],
    replacements: dict[str, list[ir.Value]],
) -> None:
    weights = [node.inputs[i] for i in form.weight_inputs]
    block_size = min(block_size_for(weight_shape(w)[-1], preferred) for w in weights)
    inputs: list[ir.Value | None] = []
    for position, value in enumerate(node.inputs):
        if position not in form.weight_inputs:
            inputs.append(value)
            continue
        assert value is not None
        assert value.name is not None
        if value.name not in replacements:
            replacements[value.name] = _int8_pair(value, block_size, form.blocked_shape)
        block_sizes[value.name] = block_size
        inputs.extend(replacements[value.name])
    attributes: dict[str, ir.Attr] = dict(node.attributes)
    for key, number in form.attributes(node, block_size).items():
        attributes[key] = ir.AttrInt64(key, number)
    new_node = ir.Node(
        OP_DOMAIN,
        form.op_type,
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


def _int8_pair(weight: ir.Value, block_size: int, blocked_shape: bool) -> list[ir.Value]:
    shape = weight_shape(weight)
    blocks = (*shape[:-1], shape[-1] // block_size)
    name = weight.name or ""
    quantized = new_weight(
        name, ir.DataType.UINT8, (*blocks, block_size) if blocked_shape else shape
    )
    assert math.prod(blocks) * block_size == math.prod(shape)
    return [quantized, new_weight(name + SCALES_SUFFIX, ir.DataType.FLOAT, blocks)]
