"""What the graphs of a bundle may be made of: everything else is refused before it is run.

A bundle may come from a stranger, and what onnxruntime and kernels make of a graph that no exporter
writes is not known: loops that do not end, functions that call each other in ever greater numbers,
ops that crash when an input is missing. So a graph has

    nodes         of the ops below, with all their inputs and no subgraphs
    functions     of the shoal ops, with the bodies of graphs/ops
    weights       in weights.bin, each with the place, type and shape that the manifest gives it
    constants     of a few bytes
    inputs and outputs as the contract says

numpy at most, no onnx.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shoal.graphs.contract import IR_VERSION, OPSET_IMPORTS, WEIGHTS_FILE
from shoal.graphs.errors import BundleError
from shoal.graphs.manifest import Manifest, TensorInfo
from shoal.graphs.onnx_file import (
    FLOAT,
    INT64,
    UINT8,
    Function,
    GraphFile,
    Node,
    Reference,
    Tensor,
    read_graph,
)
from shoal.graphs.onnx_text import parse_body
from shoal.graphs.ops.spec import Attribute, OpSpec
from shoal.graphs.ops.table import OPS
from shoal.graphs.parameters import EMBEDDING
from shoal.graphs.ports import check_ports

MAX_GRAPH_BYTES = 256 << 20
"""Far above what the largest model needs: a layer takes about 20 kB."""

_MAX_CONSTANT_BYTES = 4096
_CONSTANT_ITEM_BYTES = {FLOAT: 4, INT64: 8}
_NODES_PER_LAYER = 512  # some 60 are needed; onnxruntime takes minutes over chains of many nodes
_SHOAL = "shoal::"
_TYPES = {"int": int, "float": float, "string": str}


@dataclass(frozen=True)
class _PlainOp:
    inputs: tuple[int, ...]  # how many there may be
    outputs: int = 1  # at most
    attributes: tuple[str, ...] = ()
    absent: tuple[int, ...] = ()  # inputs that may be left out by an empty name


_MOST_PARTS = 8  # that are put together or split at a time, as the slots of a batch
_PLAIN_OPS = {
    "Add": _PlainOp((2,)),
    "Cast": _PlainOp((1,), attributes=("to",)),
    "Clip": _PlainOp((3,), absent=(1, 2)),
    "Concat": _PlainOp(tuple(range(2, _MOST_PARTS + 1)), attributes=("axis",)),
    "Constant": _PlainOp((0,), attributes=("value_ints",)),
    "Cos": _PlainOp((1,)),
    "GreaterOrEqual": _PlainOp((2,)),
    "MatMul": _PlainOp((2,)),
    "Mul": _PlainOp((2,)),
    "RMSNormalization": _PlainOp((2,), attributes=("axis", "epsilon", "stash_type")),
    "ReduceMax": _PlainOp((1, 2), attributes=("keepdims", "noop_with_empty_axes")),
    "ReduceSum": _PlainOp((1, 2), attributes=("keepdims", "noop_with_empty_axes")),
    "Reshape": _PlainOp((2,), attributes=("allowzero",)),
    "Shape": _PlainOp((1,), attributes=("start", "end")),  # exports with onnxscript before 0.7.2
    "Sigmoid": _PlainOp((1,)),
    "Sin": _PlainOp((1,)),
    "Slice": _PlainOp((5,)),
    "Split": _PlainOp((1, 2), outputs=_MOST_PARTS, attributes=("axis", "num_outputs")),
    "Sub": _PlainOp((2,)),
    "Transpose": _PlainOp((1,), attributes=("perm",)),
    "Unsqueeze": _PlainOp((2,)),
    "Where": _PlainOp((3,)),
}

# Bodies that earlier versions wrote, whose bundles still open: digests of their nodes, by op.
_OLDER_BODIES: Mapping[str, frozenset[str]] = {
    "DequantizeBlocks": frozenset({"3bbcb14c830323e0b35f80471581f057"}),
    "FloatLatentAttention": frozenset(
        {
            "bf6a7b1c5c275c1d8fc27eb0d96aa77e",
            "2a4f04bebc0dd0bdd6283fae22017133",
            "6063d727a1c69be96485185d6e0d6d10",
        }
    ),
    "FloatLatentAttentionInt8Cache": frozenset({"50e8bd5b75d685b69af7a10803fba83a"}),
    "FloatSparseExperts": frozenset({"67f3b968daf6b8f73e7b6ee823a4ada7"}),
    "SparseExperts": frozenset(
        {"c9d32f2e37c09ea1e44b60ea30d63e24", "d416027455ee299bcaab376799ef2fb3"}
    ),
}


def check_graph(content: bytes, where: str, role: str, manifest: Manifest) -> None:
    """Check a graph file in full, in milliseconds.

    Args:
        content: of the file.
        where: its name, for messages.
        role: what the graph is in the bundle, such as "decoder".
        manifest: of the bundle.

    Raises:
        BundleError: the graph is none that an export of this manifest could have written.
    """
    if len(content) > MAX_GRAPH_BYTES:
        raise BundleError(
            f"{where}: expected at most {MAX_GRAPH_BYTES} bytes, found {len(content)}; re-export "
            "the bundle"
        )
    graph = read_graph(content, where)
    for problem in _problems(graph, manifest):
        raise BundleError(f"{where}: {problem}; re-export the bundle")
    check_ports(graph, where, role, manifest.model)


def _problems(graph: GraphFile, manifest: Manifest) -> Iterator[str]:
    if graph.ir_version > IR_VERSION or graph.opsets != OPSET_IMPORTS:
        yield "is of another version of ONNX than graphs of bundles"
    most_nodes = _NODES_PER_LAYER * manifest.model.num_hidden_layers
    if len(graph.nodes) > most_nodes:
        yield f"has {len(graph.nodes)} nodes, expected at most {most_nodes}"
    for node in graph.nodes:
        yield from _node_problems(node)
    yield from _value_problems(graph)
    yield from _function_problems(graph)
    embedding, vocab_size = manifest.tensors.get(str(EMBEDDING)), manifest.model.vocab_size
    if embedding is not None and embedding.shape[0] != vocab_size:
        # An id beyond the table would read foreign memory.
        yield f"has {EMBEDDING} of {embedding.shape[0]} rows, expected vocab_size {vocab_size}"
    names = [tensor.name for tensor in graph.initializers]
    if len(set(names)) != len(names):
        yield "has an initializer twice"
    for tensor in graph.initializers:
        if tensor.external is None:
            if not _is_constant(tensor):
                yield f"has a constant of {len(tensor.data)} bytes that no export writes"
        elif not _is_in_place(tensor, manifest.tensors.get(tensor.name)):
            yield f"does not take {_shown(tensor.name)} from where the manifest says it is"


def _node_problems(node: Node) -> Iterator[str]:
    if node.op.startswith(_SHOAL):
        spec = OPS.get(node.op.removeprefix(_SHOAL))
        known = spec is not None and _fits_spec(node, spec)
    else:
        plain = _PLAIN_OPS.get(node.op)
        known = plain is not None and _fits_plain(node, plain)
    if not known or not all(node.outputs):
        yield f"has a node of {_shown(node.op)} that no export writes"


def _fits_spec(node: Node, spec: OpSpec) -> bool:
    most = len(spec.inputs)
    return (
        most - len(spec.optional_inputs) <= len(node.inputs) <= most
        and all(node.inputs)
        and len(node.outputs) == len(spec.outputs)
        and node.attributes.keys() == spec.attributes.keys()
        and all(type(node.attributes[key]) is _TYPES[kind] for key, kind in spec.attributes.items())
    )


def _fits_plain(node: Node, plain: _PlainOp) -> bool:
    absent = {index for index, name in enumerate(node.inputs) if not name}
    return (
        len(node.inputs) in plain.inputs
        and absent <= set(plain.absent)
        and 1 <= len(node.outputs) <= plain.outputs
        and node.attributes.keys() <= set(plain.attributes)
        and not any(isinstance(value, Reference | Tensor) for value in node.attributes.values())
    )


def _value_problems(graph: GraphFile) -> Iterator[str]:
    """Every value is made once and before it is used, so that there is no cycle."""
    made = {tensor.name for tensor in graph.initializers} | {port.name for port in graph.inputs}
    for node in graph.nodes:
        for name in node.inputs:
            if name and name not in made:
                yield f"uses {_shown(name)} before it is made"
        for name in node.outputs:
            if name in made:
                yield f"makes {_shown(name)} twice"
            made.add(name)
    for port in graph.outputs:
        if port.name not in made:
            yield f"does not make its output {_shown(port.name)}"


def _function_problems(graph: GraphFile) -> Iterator[str]:
    attributes: dict[str, Mapping[str, Attribute]] = {}
    for node in graph.nodes:
        if node.op.startswith(_SHOAL):
            # Checked to be plain values before.
            attributes.setdefault(node.op, node.attributes)  # type: ignore[arg-type]
    seen: set[str] = set()
    for function in graph.functions:
        spec = OPS.get(function.op.removeprefix(_SHOAL))
        if spec is None or not function.op.startswith(_SHOAL) or function.op in seen:
            yield f"has a function {_shown(function.op)} that no export writes"
        elif not _has_our_body(function, spec, attributes.get(function.op, {})):
            yield f"has another body of {function.op} than shoal's"
        seen.add(function.op)


def _has_our_body(function: Function, spec: OpSpec, attributes: Mapping[str, Attribute]) -> bool:
    signature = tuple(spec.inputs), tuple(spec.outputs), tuple(spec.attributes)
    found = function.inputs, function.outputs, function.attributes
    if found != signature or function.opsets != OPSET_IMPORTS:
        return False
    try:
        body = parse_body(spec.body(attributes))
    except (KeyError, ValueError):  # attributes that no router has
        return False
    return function.nodes == body or body_digest(function) in _OLDER_BODIES.get(spec.name, ())


def body_digest(function: Function) -> str:
    """Tells the nodes of a function from any others."""
    return hashlib.sha256(repr(function.nodes).encode()).hexdigest()[:32]


def _is_constant(tensor: Tensor) -> bool:
    """Whether a tensor in the graph has a known type, as many bytes as its shape says, and few."""
    size = math.prod(tensor.dims) * _CONSTANT_ITEM_BYTES.get(tensor.data_type, 0)
    return 0 < size == len(tensor.data) <= _MAX_CONSTANT_BYTES and min(tensor.dims, default=0) >= 0


def _is_in_place(tensor: Tensor, info: TensorInfo | None) -> bool:
    if info is None:
        return False
    is_packed = info.dtype == "uint4"
    shape = (*info.shape[:-1], info.shape[-1] // 2) if is_packed else info.shape
    place = {"location": WEIGHTS_FILE, "offset": str(info.offset), "length": str(info.size)}
    data_type = FLOAT if info.dtype == "float32" else UINT8
    if tensor.external != place or tensor.data_type != data_type:
        return False
    # A head that shares the embedding reads its rows in blocks.
    is_in_blocks = tensor.name == str(EMBEDDING) and tensor.dims[:1] == shape[:1]
    return tensor.dims == shape or (is_in_blocks and math.prod(tensor.dims) == math.prod(shape))


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else name[:77] + "...")
