"""Give a finished graph latent caches of another type; weights and everything else stay."""

from __future__ import annotations

import onnx_ir as ir

from shoal.graphs.cache_types import CachePart, CacheType, cache_block_size, cache_parts
from shoal.graphs.contract import OP_DOMAIN
from shoal.graphs.layer_state import layer_of_state

_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "uint8": ir.DataType.UINT8,
}
_ATTENTION = ("FloatLatentAttention", "LatentAttention")
_CACHE_INPUT = 4  # its place among the inputs of both ops
_INT8_SUFFIX = "Int8Cache"


def change_cache(
    model: ir.Model, cache_type: CacheType, *, kv_lora_rank: int, qk_rope_head_dim: int
) -> None:
    """Change the latent caches of ``model``, which are float32, in place.

    Args:
        model: a decoder or mtp graph.
        cache_type: the new type.
        kv_lora_rank: values of a latent.
        qk_rope_head_dim: values of a rope key.
    """
    parts = cache_parts(cache_type, kv_lora_rank, qk_rope_head_dim)
    nodes = [n for n in model.graph if n.domain == OP_DOMAIN and n.op_type in _ATTENTION]
    for node in nodes:
        cache, cache_out = node.inputs[_CACHE_INPUT], node.outputs[1]
        assert cache is not None, "attention has a cache"
        _declare(cache, parts[0])
        _declare(cache_out, parts[0])
        if len(parts) > 1:
            block_size = cache_block_size(kv_lora_rank)
            assert block_size is not None, "int8 caches have blocks"
            _add_parts(model.graph, node, parts[1:], block_size)


def _declare(value: ir.Value, part: CachePart) -> None:
    value.type = ir.TensorType(_DTYPES[part.dtype])
    value.shape = ir.Shape([1, "S", part.width])


def _add_parts(
    graph: ir.Graph, node: ir.Node, parts: tuple[CachePart, ...], block_size: int
) -> None:
    """Replace an attention node by the one that takes the other parts of an int8 cache too."""
    cache = node.inputs[_CACHE_INPUT]
    assert cache is not None, "attention has a cache"
    assert cache.name is not None, "graph inputs have names"
    layer = layer_of_state(cache.name)
    added = [ir.Value(name=part.input(layer)) for part in parts]
    after = list(graph.inputs).index(cache) + 1
    for offset, value in enumerate(added):
        graph.inputs.insert(after + offset, value)
    new = ir.Node(
        node.domain,
        node.op_type + _INT8_SUFFIX,
        [*node.inputs[: _CACHE_INPUT + 1], *added, *node.inputs[_CACHE_INPUT + 1 :]],
        {**node.attributes, "cache_block_size": ir.AttrInt64("cache_block_size", block_size)},
        num_outputs=2 + len(parts),
        name=node.name,
    )
    for old, value in zip(node.outputs, new.outputs, strict=False):
        value.name, value.shape, value.type = old.name, old.shape, old.type
    after = list(graph.outputs).index(node.outputs[1]) + 1
    for offset, (part, value) in enumerate(zip(parts, new.outputs[2:], strict=True)):
        value.name = part.output(layer)
        graph.outputs.insert(after + offset, value)
        _declare(value, part)
        _declare(added[offset], part)
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(
        node.outputs, new.outputs[: len(node.outputs)], replace_graph_outputs=True
    )
    graph.remove(node, safe=True)
