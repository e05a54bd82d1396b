"""The function bodies: structure, signatures and refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import pytest
from tests.graphs.one_op import OneOpModels

from shoal.graphs.contract import IR_VERSION, ONNX_OPSET, OP_DOMAIN
from shoal.graphs.errors import ExportError
from shoal.graphs.functions import function_proto, function_protos
from shoal.graphs.ops.spec import Attribute, Attributes
from shoal.graphs.ops.table import OPS

pytestmark = pytest.mark.dependencies

ROUTE: dict[str, Attribute] = {
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "top_k": 4,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": 1,
    "routed_scaling_factor": 2.5,
}


def attributes_of(name: str) -> Attributes:
    return ROUTE if name == "Route" else {}


@pytest.mark.parametrize("name", OPS)
def test_function_has_the_signature_of_its_spec(name: str) -> None:
    function = function_proto(name, attributes_of(name))
    assert (function.domain, function.name) == (OP_DOMAIN, name)
    assert list(function.input) == list(OPS[name].inputs)
    assert list(function.output) == list(OPS[name].outputs)
    assert list(function.attribute) == list(OPS[name].attributes)
    assert OPS[name].doc in function.doc_string


@pytest.mark.parametrize("name", OPS)
def test_body_uses_only_portable_ops_and_declared_functions(name: str) -> None:
    function = function_proto(name, attributes_of(name))
    assert {node.domain for node in function.node} <= {"", "com.microsoft", OP_DOMAIN}
    called = {node.op_type for node in function.node if node.domain == OP_DOMAIN}
    assert called == set(OPS[name].uses)
    opsets = {entry.domain: entry.version for entry in function.opset_import}
    assert opsets == {"": ONNX_OPSET, "com.microsoft": 1, OP_DOMAIN: 1}


@pytest.mark.parametrize("name", OPS)
def test_body_uses_every_input_and_attribute(name: str) -> None:
    function = function_proto(name, attributes_of(name))
    read = {value for node in function.node for value in node.input}
    assert set(function.input) <= read
    refs = {a.ref_attr_name for node in function.node for a in node.attribute if a.ref_attr_name}
    if name != "Route":  # the body of Route is written for the values of its attributes
        assert refs == set(OPS[name].attributes)


@pytest.mark.parametrize("name", OPS)
def test_cache_is_read_by_tensor_scatter_only(name: str) -> None:
    function = function_proto(name, attributes_of(name))
    caches = {value for value in function.input if value.startswith("cache")}
    readers = {
        n.op_type
        for n in function.node
        # CastLike takes only the type of its second input, and is gone when the graph runs.
        if caches & set(n.input[:1] if n.op_type == "CastLike" else n.input)
        and n.domain != OP_DOMAIN
    }
    assert readers <= {"TensorScatter", "Shape"}


def test_every_8_bit_matmul_quantizes_its_activations() -> None:
    found = 0
    for name in OPS:
        for node in function_proto(name, attributes_of(name)).node:
            if node.op_type == "MatMulNBits":
                values = {a.name: a.i for a in node.attribute}
                assert (values["bits"], values["accuracy_level"]) == (8, 4)
                found += 1
    assert found == 1


def test_written_model_has_the_right_versions(models: OneOpModels) -> None:
    inputs = {"x": np.ones((1, 4), np.float32), "weight": np.ones((2, 4), np.float32)}
    model = onnx.load(models.write("FloatLinear", {}, inputs), load_external_data=False)
    assert model.ir_version == IR_VERSION == 11
    versions = {entry.domain: entry.version for entry in model.opset_import}
    assert versions == {"": 24, "com.microsoft": 1, "shoal": 1}


def test_functions_come_once_with_what_they_use() -> None:
    attention: Attributes = {"softmax_scale": 0.1, "block_size": 32}
    nodes = [("LatentAttention", attention), ("Route", ROUTE), ("LatentAttention", attention)]
    names = [function.name for function in function_protos(nodes)]
    assert sorted(names) == sorted(
        ["LatentAttention", "FloatLatentAttention", "DequantizeBlocks", "Route"]
    )


def test_functions_do_not_depend_on_node_order() -> None:
    nodes: list[tuple[str, Attributes]]
    nodes = [("Route", ROUTE), ("FloatLinear", {}), ("FloatEmbedding", {})]
    texts = [[f.SerializeToString() for f in function_protos(n)] for n in (nodes, nodes[::-1])]
    assert texts[0] == texts[1]


def test_different_route_nodes_are_refused() -> None:
    with pytest.raises(ExportError, match="equal attributes on all Route nodes"):
        function_protos([("Route", ROUTE), ("Route", ROUTE | {"top_k": 2})])


def test_nodes_may_differ_where_the_body_does_not() -> None:
    nodes = [("Embedding", {"block_size": 16}), ("Embedding", {"block_size": 32})]
    assert len(function_protos(nodes)) == 1


def test_unknown_op_is_refused() -> None:
    with pytest.raises(ExportError, match="found 'Attention'"):
        function_protos([("Attention", {})])


def test_missing_attribute_is_refused() -> None:
    with pytest.raises(ExportError, match=r"found \['block_size'\]"):
        function_protos([("LatentAttention", {"block_size": 32})])
