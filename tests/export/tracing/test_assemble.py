"""The graphs of a bundle: their inputs and outputs, and how layers hang together in them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import pytest
from tests.export.tracing.small_templates import NUM_LAYERS, small_config, traced_before

from shoal.export.tracing import assemble
from shoal.export.tracing.assemble import Graphs, build_graphs
from shoal.graphs.parameters import Parameter


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "trace_templates", traced_before)
        yield


@pytest.fixture(scope="module")
def graphs() -> Graphs:
    return build_graphs(small_config("deepseek_v3"), num_mtp_layers=1, recipe=None)


def names(values: list[onnx.ValueInfoProto]) -> list[str]:
    return [value.name for value in values]


def test_every_layer_has_its_state_and_layers_with_experts_say_which(graphs: Graphs) -> None:
    decoder = graphs.models["decoder"].graph
    caches = [f"cache.{layer}" for layer in range(NUM_LAYERS)]
    assert names(list(decoder.input)) == ["input_ids", "position_ids", *caches]
    experts = ["expert_ids.{}", "expert_weights.{}"]
    layers = [["cache_out.{}"], ["cache_out.{}", *experts], ["cache_out.{}", *experts]]
    outputs = [name.format(layer) for layer, kinds in enumerate(layers) for name in kinds]
    assert names(list(decoder.output)) == ["hidden", *outputs]


def test_the_mtp_graph_has_one_layer_with_experts(graphs: Graphs) -> None:
    mtp = graphs.models["mtp"].graph
    assert names(list(mtp.input)) == ["input_ids", "position_ids", "hidden", "cache.0"]
    outputs = ["hidden_out", "cache_out.0", "expert_ids.0", "expert_weights.0"]
    assert names(list(mtp.output)) == outputs


def test_graphs_share_the_place_of_the_embedding(graphs: Graphs) -> None:
    places = set()
    for role in ("decoder", "batch", "mtp"):
        tensors = {tensor.name: tensor for tensor in graphs.models[role].graph.initializer}
        entries = tensors["embed_tokens.weight"].external_data
        places.add(next(entry.value for entry in entries if entry.key == "offset"))
    assert places == {str(graphs.plan.tensors["embed_tokens.weight"].offset)}


def test_weights_come_in_the_order_of_the_layers_with_experts_last_in_each(graphs: Graphs) -> None:
    parameters = [Parameter.parse(name) for name in graphs.plan.tensors]
    sections = list(dict.fromkeys(parameter.section for parameter in parameters))
    layers = [f"layers.{layer}" for layer in range(NUM_LAYERS)]
    assert sections == ["embed_tokens", *layers, "norm", "lm_head", "mtp.0"]
    for layer in range(NUM_LAYERS):
        routed = [p.is_routed_experts for p in parameters if p.layer == layer]
        assert routed == sorted(routed)


def test_late_experts_join_at_the_end_of_the_layer_that_follows() -> None:
    config = small_config("longcat_flash")
    graph = build_graphs(config, num_mtp_layers=0, recipe=None).models["decoder"].graph
    layer_of = {
        output: int(node.name.split("/")[0].removeprefix("layers."))
        for node in graph.node
        if node.name.startswith("layers.")
        for output in node.output
    }
    experts = [node.output[0] for node in graph.node if node.op_type == "FloatSparseExperts"]
    assert [layer_of[name] for name in experts] == [0, 2]
    crossing = [
        (layer_of[name], layer_of[node.output[0]], node.op_type)
        for node in graph.node
        for name in node.input
        if name in layer_of and node.output[0] in layer_of
        if layer_of[name] != layer_of[node.output[0]]
    ]
    # The hidden state is read twice in the next layer, what late experts put out is added once.
    late = [edge for edge in crossing if edge[0] in (0, 2)]
    assert sorted(set(late)) == [
        (0, 1, "Add"),
        (0, 1, "RMSNormalization"),
        (2, 3, "Add"),
        (2, 3, "RMSNormalization"),
    ]
    assert [late.count((layer, layer + 1, "Add")) for layer in (0, 2)] == [2, 2]
