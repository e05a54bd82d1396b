"""Weights before and after they have a place in weights.bin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.graphs.one_op import assert_near
from tests.graphs.passes.small_graph import FLOAT, UINT8, SmallGraph, described, run
from tests.tolerances import FLOAT32_SUMS

from shoal.graphs.manifest import TensorInfo
from shoal.graphs.passes.weights import (
    WeightPlan,
    is_weight,
    new_weight,
    place_weights,
    replace_initializers,
    weight_shape,
)

UP, DOWN = "layers.0.mlp.up_proj.weight", "layers.0.mlp.down_proj.weight"


def two_products() -> SmallGraph:
    """y = (x up^T) down^T"""
    graph = SmallGraph()
    x = graph.input("x", FLOAT, [1, "T", 4])
    (hidden,) = graph.node("FloatLinear", [x, graph.weight(UP, (6, 4))], ["hidden"])
    (y,) = graph.node("FloatLinear", [hidden, graph.weight(DOWN, (4, 6))], ["y"])
    graph.output(y, FLOAT, [1, "T", 4])
    return graph


def places(model: ir.Model) -> dict[str, tuple[int | None, int | None]]:
    """Offset and length of the external data of each weight."""
    found = {}
    for name, value in model.graph.initializers.items():
        assert isinstance(value.const_value, ir.ExternalTensor)
        assert value.const_value.location == "weights.bin"
        found[name] = value.const_value.offset, value.const_value.length
    return found


def test_a_new_weight_has_a_shape_and_no_data() -> None:
    weight = new_weight(UP, UINT8, (6, 4))
    assert is_weight(weight)
    assert (weight.name, weight.dtype, weight_shape(weight)) == (UP, UINT8, (6, 4))
    assert places(two_products().model) == {UP: (0, 96), DOWN: (0, 96)}


def test_constants_inputs_and_absent_inputs_are_no_weights() -> None:
    constant = ir.Value(name="c", const_value=ir.tensor(np.zeros(2, np.float32)))
    assert not is_weight(constant)
    assert not is_weight(SmallGraph().input("x", FLOAT, [1]))
    assert not is_weight(None)


def test_weights_lie_on_pages_of_their_own_in_the_order_of_the_graph() -> None:
    model, plan = two_products().model, WeightPlan()
    before = described(model)
    place_weights(model, plan)
    assert plan.tensors == {
        UP: TensorInfo(dtype="float32", shape=(6, 4), offset=0, size=96),
        DOWN: TensorInfo(dtype="float32", shape=(4, 6), offset=4096, size=96),
    }
    assert plan.total_bytes == 4096 + 96
    assert places(model) == {UP: (0, 96), DOWN: (4096, 96)}
    assert described(model) == before, "only the places are new"


def test_placing_again_and_in_another_graph_keeps_the_places() -> None:
    model, plan = two_products().model, WeightPlan()
    place_weights(model, plan)
    first = places(model), plan.total_bytes
    place_weights(model, plan)
    assert (places(model), plan.total_bytes) == first

    other = SmallGraph()
    other.weight("norm.weight", (4,))
    other.weight(DOWN, (4, 6))
    place_weights(other.model, plan)
    assert places(other.model) == {"norm.weight": (8192, 16), DOWN: (4096, 96)}


def test_a_name_with_two_sizes_is_refused() -> None:
    plan = WeightPlan()
    plan.place(UP, FLOAT, (6, 4))
    with pytest.raises(AssertionError, match="is used with two sizes"):
        plan.place(UP, FLOAT, (6, 5))


def test_packed_weights_are_told_as_4_bit_values() -> None:
    graph, plan = SmallGraph(), WeightPlan()
    experts = new_weight("layers.1.mlp.experts.down", UINT8, (2, 4, 8))
    graph.model.graph.register_initializer(experts)
    place_weights(graph.model, plan, packed={"layers.1.mlp.experts.down"})
    (info,) = plan.tensors.values()
    assert info == TensorInfo(dtype="uint4", shape=(2, 4, 16), offset=0, size=64)
    assert weight_shape(experts) == (2, 4, 8)


def test_constants_are_not_placed() -> None:
    graph, plan = SmallGraph(), WeightPlan()
    data = ir.tensor(np.ones(2, np.float32), name="constant.0")
    constant = ir.Value(name="constant.0", const_value=data)
    graph.model.graph.register_initializer(constant)
    place_weights(graph.model, plan)
    assert plan.tensors == {}
    assert constant.const_value is data


def test_replaced_weights_take_the_place_of_the_old_ones_in_the_order() -> None:
    graph = SmallGraph()
    for name in ("a", "b", "c"):
        graph.weight(name, (2,))
    kept = graph.model.graph.initializers["c"]
    new = [new_weight(name, FLOAT, (1,)) for name in ("b1", "b2")]
    replace_initializers(graph.model.graph, {"b": new, "a": []})
    assert list(graph.model.graph.initializers) == ["b1", "b2", "c"]
    assert graph.model.graph.initializers["c"] is kept


def test_placed_weights_are_what_onnxruntime_reads(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weights = {
        UP: rng.standard_normal((6, 4), np.float32),
        DOWN: rng.standard_normal((4, 6), np.float32),
    }
    x = rng.standard_normal((1, 3, 4), np.float32)
    found = run(two_products().model, weights, {"x": x}, tmp_path / "model")
    assert_near(found["y"], x @ weights[UP].T @ weights[DOWN].T, FLOAT32_SUMS)
