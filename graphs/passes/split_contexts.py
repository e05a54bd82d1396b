"""Make a finished decoder graph read tokens of several contexts, each with caches of its own.

Linear maps, experts, norms and routing take rows as they come, so they stay as they are and read
their weights once for all contexts. What has a state tells contexts apart, and that is attention
alone: each of its nodes becomes one node for each slot, which gets the row and the cache of the
context in that slot.

LongRoPE takes other frequencies once a step goes beyond the original context. That is for each
context to decide, so the largest position of the step becomes the position of each row.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence

import onnx_ir as ir

from shoal.graphs.contract import OP_DOMAIN, SLOT_ROWS_INPUT, in_slot

_ROW_INPUTS = 4  # q_nope, q_rope, latent and k_rope, the first of every attention op
_TOKEN_AXIS = 1


def split_contexts(model: ir.Model, num_slots: int) -> None:
    """Give ``model`` every cache once for each slot, and the input ``slot_rows`` [num_slots].

    Args:
        model: a decoder graph with caches of any type; changed in place.
        num_slots: contexts that a step reads at most.
    """
    graph = model.graph
    slot_rows = ir.Value(
        name=SLOT_ROWS_INPUT,
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([num_slots]),
    )
    for node in list(graph):
        if node.op_type == "ReduceMax" and node.inputs[0] is graph.inputs[1]:
            _decide_by_row(graph, node)
        elif node.domain == OP_DOMAIN and "LatentAttention" in node.op_type:
            _split_attention(graph, node, slot_rows, num_slots)
    graph.inputs.insert(2, slot_rows)  # behind input_ids and position_ids


def _decide_by_row(graph: ir.Graph, node: ir.Node) -> None:
    """Replace the largest of all positions by each position, as [1, T, 1]."""
    axis = ir.Node(
        "", "Constant", [], [ir.AttrInt64s("value_ints", [-1])], name=f"{node.name}/axis"
    )
    rows = ir.Node("", "Unsqueeze", [node.inputs[0], axis.outputs[0]], name=f"{node.name}/rows")
    graph.insert_before(node, [axis, rows])
    ir.convenience.replace_all_uses_with(node.outputs[0], rows.outputs[0])
    graph.remove(node, safe=True)


def _split_attention(graph: ir.Graph, node: ir.Node, slot_rows: ir.Value, num_slots: int) -> None:
    y = node.outputs[0]
    caches = [v for v in node.inputs[_ROW_INPUTS:] if v is not None and v in graph.inputs]
    splits = [
        _along_tokens("Split", [value, slot_rows], num_slots, f"{y.name}/rows.{index}")
        for index, value in enumerate(node.inputs[:_ROW_INPUTS])
    ]
    slots = [
        _in_slot(node, slot, [split.outputs[slot] for split in splits], caches)
        for slot in range(num_slots)
    ]
    joined = _along_tokens("Concat", [each.outputs[0] for each in slots], 1, f"{y.name}/joined")
    graph.insert_before(node, [*splits, *slots, joined])
    ir.convenience.replace_all_uses_with(y, joined.outputs[0])
    for index, cache in enumerate(caches):
        _replace(graph.inputs, cache, [each.inputs[_ROW_INPUTS + index] for each in slots])
        _replace(
            graph.outputs, node.outputs[1 + index], [each.outputs[1 + index] for each in slots]
        )
    graph.remove(node, safe=True)


def _along_tokens(
    op_type: str, inputs: Sequence[ir.Value | None], num_outputs: int, name: str
) -> ir.Node:
    """A Split or Concat along the axis of the tokens."""
    axis = ir.AttrInt64("axis", _TOKEN_AXIS)
    return ir.Node("", op_type, inputs, [axis], num_outputs=num_outputs, name=name)


def _in_slot(
    node: ir.Node, slot: int, rows: Sequence[ir.Value], caches: Sequence[ir.Value]
) -> ir.Node:
    """The attention node of one slot, with cache inputs and outputs of its own."""
    weights = node.inputs[_ROW_INPUTS + len(caches) :]
    y = ir.Value(name=f"{node.outputs[0].name}/slot.{slot}")
    return ir.Node(
        node.domain,
        node.op_type,
        [*rows, *(_slot_value(cache, slot) for cache in caches), *weights],
        node.attributes,
        outputs=[y, *(_slot_value(cache, slot) for cache in node.outputs[1:])],
        name=f"{node.name}/slot.{slot}",
    )


def _slot_value(cache: ir.Value, slot: int) -> ir.Value:
    """A cache, as a graph input or output, in one slot."""
    assert cache.name is not None, "caches have names"
    assert cache.shape is not None, "caches have shapes"
    shape = ir.Shape([1, f"S{slot}", cache.shape[2]])
    return ir.Value(name=in_slot(cache.name, slot), type=cache.type, shape=shape)


def _replace(
    values: MutableSequence[ir.Value], old: ir.Value, new: Sequence[ir.Value | None]
) -> None:
    place = next(index for index, value in enumerate(values) if value is old)
    values[place : place + 1] = [value for value in new if value is not None]
