"""Reading ONNX graph files without onnx, strictly: what a bundle's graphs are made of, no more.

A device has no onnx package, and what onnxruntime makes of a file is only known once it has loaded
it. So this reads the protocol buffer itself. A file that uses anything of ONNX that bundles do not
use (subgraphs, sparse tensors, training, a field written twice) is refused, which also leaves no
room for two readers to see two different graphs in one file.

Source: onnx/onnx.proto (IR version 11); the wire format of protocol buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.graphs.contract import MAX_DIMENSIONS
from shoal.graphs.errors import BundleError
from shoal.graphs.wire import (
    BYTES,
    FIXED32,
    VARINT,
    Fields,
    Message,
    WireError,
    floating,
    one,
    signed,
    text,
    texts,
)
from shoal.graphs.wire import fields as fields_of

FLOAT, UINT8, INT64, BOOL, FLOAT16, DOUBLE, UINT4 = 1, 2, 7, 9, 10, 11, 21
"""onnx.TensorProto.DataType, as far as bundles use them."""

_EXTERNAL = 1  # onnx.TensorProto.DataLocation


@dataclass(frozen=True, slots=True)
class Tensor:
    """An initializer or the value of an attribute."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    external: Mapping[str, str] | None  # location, offset, length; None if the data is here
    data: bytes


@dataclass(frozen=True, slots=True)
class Port:
    """A graph input or output: an element type and sizes, a name where one may vary."""

    name: str
    data_type: int
    dims: tuple[int | str, ...]


AttributeValue = int | float | str | tuple[int, ...] | tuple[float, ...] | Tensor


@dataclass(frozen=True, slots=True)
class Reference:
    """An attribute of a node in a function that takes the value of the function's attribute."""

    name: str


@dataclass(frozen=True, slots=True)
class Node:
    """One node."""

    op: str  # with its domain: "Add", "com.microsoft::QMoE", "shoal::Linear"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue | Reference]


@dataclass(frozen=True, slots=True)
class Function:
    """A model-local function."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    nodes: tuple[Node, ...]
    opsets: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class GraphFile:
    """The content of a .onnx file."""

    ir_version: int
    opsets: Mapping[str, int]
    functions: tuple[Function, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    initializers: tuple[Tensor, ...]
    nodes: tuple[Node, ...]


def read_graph(content: bytes, where: str) -> GraphFile:
    """Read a graph file.

    Args:
        content: of the file.
        where: its name, for messages.

    Raises:
        BundleError: not an ONNX file, or one that uses what graphs of bundles do not.
    """
    try:
        return _model(content)
    except (WireError, UnicodeDecodeError, IndexError) as error:
        reason = str(error) if isinstance(error, WireError) else "its bytes are damaged"
        raise BundleError(
            f"{where}: is no graph of a bundle ({reason}); re-export the bundle"
        ) from error


_MODEL: Fields = {
    1: ("ir_version", VARINT, False),
    2: ("producer_name", BYTES, False),
    3: ("producer_version", BYTES, False),
    4: ("domain", BYTES, False),
    5: ("model_version", VARINT, False),
    6: ("doc_string", BYTES, False),
    7: ("graph", BYTES, False),
    8: ("opset_import", BYTES, True),
    25: ("functions", BYTES, True),
}
_GRAPH: Fields = {
    1: ("node", BYTES, True),
    2: ("name", BYTES, False),
    5: ("initializer", BYTES, True),
    10: ("doc_string", BYTES, False),
    11: ("input", BYTES, True),
    12: ("output", BYTES, True),
    13: ("value_info", BYTES, True),
}
_NODE: Fields = {
    1: ("input", BYTES, True),
    2: ("output", BYTES, True),
    3: ("name", BYTES, False),
    4: ("op_type", BYTES, False),
    5: ("attribute", BYTES, True),
    6: ("doc_string", BYTES, False),
    7: ("domain", BYTES, False),
}
_FUNCTION: Fields = {
    1: ("name", BYTES, False),
    4: ("input", BYTES, True),
    5: ("output", BYTES, True),
    6: ("attribute", BYTES, True),
    7: ("node", BYTES, True),
    8: ("doc_string", BYTES, False),
    9: ("opset_import", BYTES, True),
    10: ("domain", BYTES, False),
}
_ATTRIBUTE: Fields = {
    1: ("name", BYTES, False),
    2: ("f", FIXED32, False),
    3: ("i", VARINT, False),
    4: ("s", BYTES, False),
    5: ("t", BYTES, False),
    7: ("floats", FIXED32, True),
    8: ("ints", VARINT, True),
    13: ("doc_string", BYTES, False),
    20: ("type", VARINT, False),
    21: ("ref_attr_name", BYTES, False),
}
_TENSOR: Fields = {
    1: ("dims", VARINT, True),
    2: ("data_type", VARINT, False),
    5: ("int32_data", VARINT, True),
    8: ("name", BYTES, False),
    9: ("raw_data", BYTES, False),
    12: ("doc_string", BYTES, False),
    13: ("external_data", BYTES, True),
    14: ("data_location", VARINT, False),
}
_OPSET: Fields = {1: ("domain", BYTES, False), 2: ("version", VARINT, False)}
_ENTRY: Fields = {1: ("key", BYTES, False), 2: ("value", BYTES, False)}
_VALUE_INFO: Fields = {
    1: ("name", BYTES, False),
    2: ("type", BYTES, False),
    3: ("doc_string", BYTES, False),
}
_TYPE: Fields = {1: ("tensor_type", BYTES, False)}
_TENSOR_TYPE: Fields = {1: ("elem_type", VARINT, False), 2: ("shape", BYTES, False)}
_SHAPE: Fields = {1: ("dim", BYTES, True)}
_DIMENSION: Fields = {1: ("dim_value", VARINT, False), 2: ("dim_param", BYTES, False)}

# Attribute types that bundles use: key of the value by onnx.AttributeProto.AttributeType.
_ATTRIBUTE_KEYS = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints"}


def _model(data: bytes) -> GraphFile:
    model = fields_of(data, _MODEL)
    graph = fields_of(one(model, "graph"), _GRAPH)
    _check_value_info(graph.get("value_info", []))
    return GraphFile(
        ir_version=one(model, "ir_version"),
        opsets=_opsets(model),
        functions=tuple(map(_function, model.get("functions", ()))),
        inputs=tuple(map(_port, graph.get("input", ()))),
        outputs=tuple(map(_port, graph.get("output", ()))),
        initializers=tuple(map(_tensor, graph.get("initializer", ()))),
        nodes=tuple(map(_node, graph.get("node", ()))),
    )


def _opsets(message: Message) -> dict[str, int]:
    found: dict[str, int] = {}
    for data in message.get("opset_import", ()):
        fields = fields_of(data, _OPSET)
        domain = text(fields, "domain")
        if domain in found:
            raise WireError("an operator set imported twice")
        found[domain] = one(fields, "version")
    return found


def _function(data: bytes) -> Function:
    fields = fields_of(data, _FUNCTION)
    return Function(
        op=_op(text(fields, "domain"), text(fields, "name")),
        inputs=texts(fields, "input"),
        outputs=texts(fields, "output"),
        attributes=texts(fields, "attribute"),
        nodes=tuple(map(_node, fields.get("node", ()))),
        opsets=_opsets(fields),
    )


def _node(data: bytes) -> Node:
    fields = fields_of(data, _NODE)
    attributes: dict[str, AttributeValue | Reference] = {}
    for attribute in fields.get("attribute", ()):
        name, value = _attribute(attribute)
        if name in attributes:
            raise WireError("an attribute twice")
        attributes[name] = value
    return Node(
        op=_op(text(fields, "domain"), text(fields, "op_type")),
        inputs=texts(fields, "input"),
        outputs=texts(fields, "output"),
        attributes=attributes,
    )


def _op(domain: str, name: str) -> str:
    return f"{domain}::{name}" if domain else name


def _attribute(data: bytes) -> tuple[str, AttributeValue | Reference]:
    fields = fields_of(data, _ATTRIBUTE)
    name, key = text(fields, "name"), _ATTRIBUTE_KEYS.get(one(fields, "type"))
    if key is None:
        raise WireError("an attribute that holds no plain value")
    if "ref_attr_name" in fields:
        return name, Reference(text(fields, "ref_attr_name"))
    if fields.keys() - {"name", "type", "doc_string", key}:
        raise WireError("an attribute with several values")
    value: AttributeValue
    if key == "i":
        value = signed(one(fields, key, 0))
    elif key == "f":
        value = floating(one(fields, key, bytes(4)))
    elif key == "s":
        value = text(fields, key)
    elif key == "t":
        value = _tensor(one(fields, key))
    elif key == "ints":
        value = tuple(map(signed, fields.get(key, ())))
    else:
        value = tuple(map(floating, fields.get(key, ())))
    return name, value


def _tensor(data: bytes) -> Tensor:
    fields = fields_of(data, _TENSOR)
    external = None
    location = one(fields, "data_location", 0)
    if location not in (0, _EXTERNAL):  # which others take for 0
        raise WireError("a tensor in no place")
    if location == _EXTERNAL:
        external = {}
        for entry in fields.get("external_data", ()):
            pair = fields_of(entry, _ENTRY)
            key = text(pair, "key")
            if key in external:
                raise WireError("the place of a tensor twice")
            external[key] = text(pair, "value")
        if "raw_data" in fields:
            raise WireError("a tensor in two places")
    elif "external_data" in fields:
        raise WireError("a tensor in two places")
    data = one(fields, "raw_data", b"")
    if "int32_data" in fields:  # the parser of op bodies writes bytes so
        if data or external is not None or one(fields, "data_type") != UINT8:
            raise WireError("a tensor in two places")
        data = bytes([value & 0xFF for value in fields["int32_data"]])
    return Tensor(
        name=text(fields, "name"),
        data_type=one(fields, "data_type"),
        dims=_short(tuple(map(signed, fields.get("dims", ())))),
        external=external,
        data=data,
    )


def _port(data: bytes) -> Port:
    fields = fields_of(data, _VALUE_INFO)
    tensor = fields_of(one(fields_of(one(fields, "type"), _TYPE), "tensor_type"), _TENSOR_TYPE)
    dims = []
    for dimension in fields_of(one(tensor, "shape"), _SHAPE).get("dim", ()):
        size = fields_of(dimension, _DIMENSION)
        if len(size) != 1:
            raise WireError("an input or output of no certain shape")
        dims.append(
            signed(size["dim_value"][0]) if "dim_value" in size else text(size, "dim_param")
        )
    return Port(
        name=text(fields, "name"), data_type=one(tensor, "elem_type"), dims=_short(tuple(dims))
    )


def _check_value_info(entries: list[bytes]) -> None:
    """Read what is noted of values within a graph: onnxruntime refuses a file where it cannot."""
    types = set()  # of the many entries few differ
    for data in entries:
        fields = fields_of(data, _VALUE_INFO)
        text(fields, "name")
        types.add(one(fields, "type"))
    for data in types:
        tensor = fields_of(one(fields_of(data, _TYPE), "tensor_type"), _TENSOR_TYPE)
        sizes = fields_of(one(tensor, "shape", b""), _SHAPE).get("dim", [])
        for size in _short(tuple(sizes)):
            text(fields_of(size, _DIMENSION), "dim_param")


def _short(dims: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(dims) > MAX_DIMENSIONS:
        raise WireError(f"a tensor of {len(dims)} dimensions")
    return dims
