"""Stamping templates: what is copied, what is shared, and what everything is called."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from tests.export.tracing.small_templates import small_config, small_templates

from shoal.export.tracing.stack import GraphAssembly
from shoal.export.tracing.trace import Template
from shoal.graphs.contract import OPSET_IMPORTS
from shoal.graphs.parameters import Parameter


@pytest.fixture(scope="module")
def templates() -> dict[str, Template]:
    return small_templates("deepseek_v3", with_mtp=True)


def stamped(template: Template, *layers: int) -> ir.Model:
    """A graph of the template alone, once for each layer."""
    graph = GraphAssembly("test")
    inputs = [
        graph.input(f"x.{i}", ir.DataType.FLOAT, [1, "T", "D"])
        for i, _ in enumerate(template.inputs)
    ]
    for layer in layers:
        outputs = graph.stamp(template, inputs, f"layers.{layer}/", f"layers.{layer}.")
        graph.output(f"y.{layer}", outputs[0], ir.DataType.FLOAT, [1, "T", "D"])
    return graph.model([], doc="test")


def weights_of(model: ir.Model) -> list[str]:
    return [name for name in model.graph.initializers if not name.startswith("constant.")]


def test_a_template_stamped_twice_shares_its_constants(templates: dict[str, Template]) -> None:
    once, twice = (stamped(templates["attention"], *layers).graph for layers in ((1,), (1, 2)))
    constants = [name for name in once.initializers if name.startswith("constant.")]
    assert constants
    assert [name for name in twice.initializers if name.startswith("constant.")] == constants
    assert len(list(twice)) == 2 * len(list(once))


def test_constants_are_told_apart_by_type_and_content(templates: dict[str, Template]) -> None:
    graph = stamped(templates["attention"], 0).graph
    found = [v.const_value for n, v in graph.initializers.items() if n.startswith("constant.")]
    keys = [(c.dtype, tuple(c.shape), c.tobytes()) for c in found if c is not None]
    assert len(keys) == len(set(keys)) == len(found)
    template = templates["attention"].constants
    wanted = {(c.dtype, tuple(c.shape), c.tobytes()) for v in template if (c := v.const_value)}
    assert set(keys) == wanted


def test_weights_are_named_after_their_layers(templates: dict[str, Template]) -> None:
    names = weights_of(stamped(templates["dense"], 0, 7))
    parts = ["post_attention_layernorm.weight"]
    parts += [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    assert names == [f"layers.{layer}.{part}" for layer in (0, 7) for part in parts]


def test_a_weight_that_the_graph_has_already_is_shared(templates: dict[str, Template]) -> None:
    once, twice = (stamped(templates["dense"], *layers) for layers in ((0,), (0, 0)))
    assert weights_of(once) == weights_of(twice)


def test_routed_experts_are_the_last_weights_of_a_layer(templates: dict[str, Template]) -> None:
    names = weights_of(stamped(templates["experts"], 1, 2))
    for layer in (1, 2):
        routed = [
            Parameter.parse(name).is_routed_experts
            for name in names
            if Parameter.parse(name).layer == layer
        ]
        assert routed == sorted(routed)
        assert sum(routed) == 2
        assert len(routed) > 5  # the router and the shared experts come before them


def test_nodes_and_values_of_two_layers_have_names_of_their_own(
    templates: dict[str, Template],
) -> None:
    nodes = list(stamped(templates["experts"], 1, 2).graph)
    names = [value.name for node in nodes for value in node.outputs]
    assert len(set(names)) == len(names)
    assert len({node.name for node in nodes}) == len(nodes)
    for node in nodes:
        assert (node.name or "").startswith(("layers.1/", "layers.2/"))


def test_a_stamped_weight_has_the_shape_of_the_parameter(templates: dict[str, Template]) -> None:
    config = small_config("deepseek_v3")
    graph = stamped(templates["experts"], 1).graph
    shape = graph.initializers["layers.1.mlp.experts.down"].shape
    assert shape is not None
    assert tuple(shape) == (
        config.n_routed_experts,
        config.hidden_size,
        config.moe_intermediate_size,
    )


def test_a_graph_imports_what_its_ops_need() -> None:
    model = GraphAssembly("test").model([], doc="test")
    assert model.opset_imports == OPSET_IMPORTS
