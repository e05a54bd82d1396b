"""Graphs that no export writes are refused before onnxruntime sees them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from shoal.graphs.errors import BundleError
from shoal.graphs.functions import function_proto
from shoal.graphs.graph_rules import body_digest, check_graph
from shoal.graphs.manifest import Manifest
from shoal.graphs.manifest_reader import read_manifest
from shoal.graphs.onnx_file import Function, Node, Reference, read_graph
from shoal.graphs.onnx_text import parse_body
from shoal.graphs.ops.table import OPS

ROUTES: list[dict[str, Any]] = [
    {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 4, "topk_group": 2},
    {"scoring_func": "softmax", "topk_method": "group_limited_greedy", "n_group": 4}
    | {"topk_group": 2},
    {"scoring_func": "softmax", "topk_method": "greedy", "n_group": 1, "topk_group": 1},
]


@pytest.fixture(scope="module")
def manifest(int8_bundle: Path) -> Manifest:
    path = int8_bundle / "manifest.json"
    return read_manifest(path.read_bytes(), str(path))


@pytest.fixture(scope="module")
def decoder(int8_bundle: Path) -> onnx.ModelProto:
    return onnx.load(str(int8_bundle / "decoder.onnx"), load_external_data=False)


def check(model: onnx.ModelProto | bytes, manifest: Manifest, role: str = "decoder") -> None:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    check_graph(content, f"{role}.onnx", role, manifest)


@pytest.mark.parametrize("name", ["int8_bundle", "fp32_bundle"])
def test_every_graph_of_a_bundle_passes(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    manifest = read_manifest((folder / "manifest.json").read_bytes(), name)
    assert len(manifest.graphs) > 3
    for role, file in manifest.graphs.items():
        check((folder / file).read_bytes(), manifest, role)


def test_a_file_is_read_as_onnx_reads_it(int8_bundle: Path) -> None:
    for path in int8_bundle.glob("*.onnx"):
        model = onnx.load(str(path), load_external_data=False)
        found = read_graph(path.read_bytes(), path.name)
        assert [node.op.rpartition("::")[2] for node in found.nodes] == [
            node.op_type for node in model.graph.node
        ]
        for ours, theirs in zip(found.nodes, model.graph.node, strict=True):
            assert (ours.inputs, ours.outputs) == (tuple(theirs.input), tuple(theirs.output))
            values = {a.name: helper.get_attribute_value(a) for a in theirs.attribute}
            for name, value in ours.attributes.items():
                expected = values.pop(name)
                text = expected.decode() if isinstance(expected, bytes) else expected
                assert value == (tuple(text) if isinstance(text, list) else text)
            assert not values
        for tensor, proto in zip(found.initializers, model.graph.initializer, strict=True):
            assert (tensor.name, tensor.data_type) == (proto.name, proto.data_type)
            assert tensor.dims == tuple(proto.dims)


@pytest.mark.parametrize("name", list(OPS))
def test_bodies_are_read_from_their_text_as_onnx_reads_them(name: str) -> None:
    for values in ROUTES if name == "Route" else [{}]:
        attributes = values | {"top_k": 2, "norm_topk_prob": 1, "routed_scaling_factor": 1.0}
        attributes = attributes if name == "Route" else {}
        model = helper.make_model(
            helper.make_graph([], "none", [], []), functions=[function_proto(name, attributes)]
        )
        (function,) = read_graph(model.SerializeToString(), name).functions
        assert parse_body(OPS[name].body(attributes)) == function.nodes


def test_digests_of_older_bodies_keep_their_meaning() -> None:
    node = Node("com.microsoft::QMoE", ("x",), ("y",), {"k": Reference("k"), "axes": (1, -1)})
    function = Function("shoal::Any", ("x",), ("y",), ("k",), (node,), {"": 24})
    assert body_digest(function) == "99745c92bf2ff818b5daf89b4218e13d"


def _loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["forever"], body=body))


def _first(model: onnx.ModelProto, op: str) -> Any:
    return next(node for node in model.graph.node if node.op_type == op)


def _external(model: onnx.ModelProto, name: str) -> dict[str, onnx.StringStringEntryProto]:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    return {entry.key: entry for entry in tensor.external_data}


def _nested(model: onnx.ModelProto) -> None:
    """Thirty functions, each of which calls the next one twice."""
    for level in range(30):
        nodes = [
            helper.make_node(f"F{level + 1}", [x], [y], domain="shoal")
            for x, y in (("x", "m"), ("m", "y"))
        ]
        model.functions.append(
            helper.make_function("shoal", f"F{level}", ["x"], ["y"], nodes, model.opset_import)
        )


def _chain(model: onnx.ModelProto) -> None:
    """A long chain of cheap nodes, over which onnxruntime takes minutes."""
    last = "position_ids"
    for number in range(3000):
        model.graph.node.append(helper.make_node("Add", [last, last], [f"chain.{number}"]))
        last = f"chain.{number}"


def _change_body(model: onnx.ModelProto) -> None:
    node = next(n for f in model.functions if f.name == "Linear" for n in f.node)
    node.attribute[0].i += 1
    node.attribute[0].ClearField("ref_attr_name")
    node.attribute[0].type = onnx.AttributeProto.INT


def _swap_places(model: onnx.ModelProto) -> None:
    a = _external(model, "layers.0.self_attn.o_proj.weight")["offset"]
    b = _external(model, "layers.1.self_attn.o_proj.weight")["offset"]
    a.value, b.value = b.value, a.value


def _add_constant(model: onnx.ModelProto, **changes: Any) -> None:
    tensor: dict[str, Any] = {"name": "odd", "data_type": 1, "dims": [1], "raw_data": bytes(4)}
    model.graph.initializer.append(TensorProto(**(tensor | changes)))


def _put_nowhere(model: onnx.ModelProto, name: str) -> None:
    """A place for data that ONNX does not know, which onnx leaves unread."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.ClearField("data_location")
    tensor.MergeFromString(b"\x70\x02")


CHANGES: list[Callable[[onnx.ModelProto], object]] = [
    _loop,
    _nested,
    _chain,
    _change_body,
    _swap_places,
    lambda m: m.graph.node.append(helper.make_node("Scan", ["x"], ["y"])),
    lambda m: m.graph.node.append(helper.make_node("Relu", ["hidden"], ["y"])),
    lambda m: m.graph.node.append(
        helper.make_node("QMoE", ["hidden"], ["y"], domain="com.microsoft")
    ),
    lambda m: m.graph.node.append(helper.make_node("Any", ["hidden"], ["y"], domain="evil")),
    lambda m: _first(m, "SparseExperts").input.pop(),
    lambda m: _first(m, "SparseExperts").input.__setitem__(4, ""),
    lambda m: _first(m, "Linear").attribute.pop(),
    lambda m: _first(m, "Linear").attribute.append(helper.make_attribute("more", 1)),
    lambda m: _first(m, "Linear").attribute[0].CopyFrom(helper.make_attribute("K", "text")),
    lambda m: _first(m, "Add").input.append("hidden"),
    lambda m: _first(m, "Add").output.append("twice"),
    lambda m: _first(m, "Concat").input.extend(["hidden"] * 100),
    lambda m: m.graph.node[0].input.__setitem__(0, m.graph.node[-1].output[0]),
    lambda m: m.graph.node[-1].input.__setitem__(0, "nowhere"),
    lambda m: m.graph.node.append(m.graph.node[-1]),
    lambda m: m.graph.node.pop(),
    lambda m: m.functions.append(copy.deepcopy(m.functions[0])),
    lambda m: setattr(m.functions[0], "overload", "x"),
    lambda m: m.functions[0].input.append("more"),
    lambda m: setattr(m.functions[0].opset_import[0], "version", 3),
    lambda m: setattr(m, "ir_version", 99),
    lambda m: setattr(m.opset_import[0], "version", 3),
    lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3)),
    lambda m: m.metadata_props.add(),
    lambda m: m.training_info.add(),
    lambda m: m.graph.sparse_initializer.add(),
    lambda m: m.graph.initializer.append(m.graph.initializer[0]),
    lambda m: m.graph.initializer.append(helper.make_tensor("big", 1, [2000], [0.0] * 2000)),
    lambda m: _add_constant(m, dims=[1 << 62]),
    lambda m: _add_constant(m, dims=[-1, -1]),
    lambda m: _add_constant(m, data_type=8),
    lambda m: setattr(_external(m, "norm.weight")["location"], "value", "other.bin"),
    lambda m: setattr(_external(m, "norm.weight")["location"], "value", "../weights.bin"),
    lambda m: setattr(_external(m, "norm.weight")["offset"], "value", "0"),
    lambda m: setattr(_external(m, "norm.weight")["length"], "value", "4"),
    lambda m: next(t for t in m.graph.initializer if t.name == "norm.weight").dims.append(1),
    lambda m: setattr(
        next(t for t in m.graph.initializer if t.name == "norm.weight"), "data_type", 2
    ),
    lambda m: setattr(
        next(t for t in m.graph.initializer if t.name == "norm.weight"), "name", "norm.other"
    ),
    lambda m: _put_nowhere(m, "norm.weight"),
    lambda m: m.graph.input.append(m.graph.input[0]),
    lambda m: m.graph.input.pop(),
    lambda m: m.graph.output.pop(0),
    lambda m: m.graph.input[0].type.tensor_type.shape.ClearField("dim"),
    lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop(),
    lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"),
    lambda m: m.graph.input[0].type.tensor_type.shape.dim.extend(
        [onnx.TensorShapeProto.Dimension(dim_value=1)] * 100_000
    ),
    lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT),
    lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.shape.dim.add(),
    lambda m: m.graph.value_info[0].type.sequence_type.elem_type.tensor_type.shape.dim.add(),
    lambda m: m.graph.value_info[0].ClearField("type"),
    lambda m: m.graph.value_info[0].metadata_props.add(),
    lambda m: m.graph.value_info[0].type.tensor_type.shape.dim.extend(
        [onnx.TensorShapeProto.Dimension(dim_value=1)] * 100_000
    ),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_no_export_writes_is_refused(
    change: Callable[[onnx.ModelProto], object], decoder: onnx.ModelProto, manifest: Manifest
) -> None:
    model = copy.deepcopy(decoder)
    change(model)
    assert model != decoder
    with pytest.raises(BundleError, match=r"^decoder\.onnx: .*re-export") as raised:
        check(model, manifest)
    assert len(str(raised.value)) < 400
    assert str(raised.value).isprintable()


def test_a_graph_in_two_parts_that_readers_would_merge_is_refused(
    decoder: onnx.ModelProto, manifest: Manifest
) -> None:
    more = onnx.ModelProto()
    _loop(more)
    with pytest.raises(BundleError, match="has graph twice"):
        check(decoder.SerializeToString() + more.SerializeToString(), manifest)


def test_weights_that_the_manifest_does_not_list_are_refused(
    decoder: onnx.ModelProto, manifest: Manifest
) -> None:
    tensors = {name: info for name, info in manifest.tensors.items() if name != "norm.weight"}
    with pytest.raises(BundleError, match=r"does not take 'norm\.weight' from where"):
        check(decoder, replace(manifest, tensors=tensors))


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_changed_bytes_are_refused_or_mean_a_graph_of_the_same_nodes(
    decoder: onnx.ModelProto, manifest: Manifest, data: st.DataObject
) -> None:
    content = bytearray(decoder.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 1000]))
    changed = bytes(content[: len(content) - cut])
    try:
        check(changed, manifest)
    except BundleError:
        return
    found = onnx.load_from_string(changed)
    ops = [node.op_type for node in decoder.graph.node]
    assert [node.op_type for node in found.graph.node] == ops
