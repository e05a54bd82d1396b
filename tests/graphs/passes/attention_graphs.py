"""Hand-written decoder graphs that the tests of caches and contexts start from."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from tests.graphs.op_inputs import SCALE
from tests.graphs.passes.small_graph import FLOAT, INT64, Shape, SmallGraph

H, N, R, C, V = 3, 12, 8, 32, 10  # as op_inputs.float_inputs has them

W_UK = "layers.{}.self_attn.w_uk"
W_UV = "layers.{}.self_attn.w_uv"


def decoder_graph(layers: Sequence[int] = (0,)) -> SmallGraph:
    """Latent attention in some of the layers, over the same queries; ``y`` is what they add up to.

    Args:
        layers: numbers of the layers with latent attention.
    """
    graph = SmallGraph()
    graph.input("input_ids", INT64, [1, "T"])
    graph.input("position_ids", INT64, [1, "T"])
    shapes: dict[str, Shape] = {
        "q_nope": [1, "T", H, N],
        "q_rope": [1, "T", H, R],
        "latent": [1, "T", C],
        "k_rope": [1, "T", R],
    }
    queries = [graph.input(name, FLOAT, shape) for name, shape in shapes.items()]
    caches = [graph.input(f"cache.{layer}", FLOAT, [1, "S", C + R]) for layer in layers]
    found = [
        _attention(graph, layer, queries, cache)
        for layer, cache in zip(layers, caches, strict=True)
    ]
    (y,) = graph.node("Sum", [each[0] for each in found], ["y"], domain="")
    graph.output(y, FLOAT, [1, "T", H, V])
    for _, cache_out in found:
        graph.output(cache_out, FLOAT, [1, "S", C + R])
    return graph


def _attention(
    graph: SmallGraph, layer: int, queries: Sequence[ir.Value], cache: ir.Value
) -> list[ir.Value]:
    weights = [
        graph.weight(W_UK.format(layer), (H, N, C)),
        graph.weight(W_UV.format(layer), (H, V, C)),
    ]
    return graph.node(
        "FloatLatentAttention",
        [*queries, cache, *weights],
        [f"y.{layer}", f"cache_out.{layer}"],
        softmax_scale=SCALE,
    )
