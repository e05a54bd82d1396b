"""Graphs: changed as protocol buffers and listed in the manifest, then checked and run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random

import onnx
from google.protobuf.message import DecodeError
from tests.fuzz.formats.manifest import sealed
from tests.fuzz.fuzz_format import Samples, Use, link_bundle, require
from tests.fuzz.mutations import change_bytes, number_of_changes
from tests.fuzz.wire_mutations import (
    BYTES,
    Donors,
    Field,
    change_message,
    gather_donors,
    read_fields,
    write_fields,
)

from shoal.graphs.cache_types import CACHE_TYPES
from shoal.graphs.contract import MANIFEST_FILE
from shoal.graphs.onnx_file import read_graph
from shoal.runtime.bundle import Bundle
from shoal.runtime.opening import open_bundle

_GRAPH, _NODE, _FUNCTIONS, _SUBGRAPH = 7, 1, 25, 6
_UNSIGNED = (1 << 64) - 1  # as we read numbers of types


class GraphFormat:
    """Graphs of the sample bundle."""

    def __init__(self, samples: Samples) -> None:
        self._bundle = samples.bundle
        self._manifest = json.loads((samples.bundle / MANIFEST_FILE).read_bytes())
        self._graphs = {
            name: (samples.bundle / name).read_bytes() for name in self._manifest["graphs"].values()
        }
        self._donors: Donors = _hostile_fields()
        for content in self._graphs.values():
            gather_donors(content, self._donors)

    def prepare(self, rng: Random, folder: Path) -> Use:
        """See ``FuzzFormat``."""
        is_listed = rng.random() < 0.97
        role = rng.choice(list(self._manifest["graphs"]))
        name = self._manifest["graphs"][role]
        content = self._graphs[name]
        for _ in range(number_of_changes(rng)):
            content = self._changed(rng, content)
        if rng.random() < 0.03:
            content = change_bytes(rng, content)
        bundle = link_bundle(self._bundle, folder / "bundle", (MANIFEST_FILE, name))
        (bundle / name).write_bytes(content)
        files = self._manifest["files"]
        if is_listed:
            digest = hashlib.sha256(content).hexdigest()
            files = files | {name: {"size": len(content), "sha256": digest}}
        (bundle / MANIFEST_FILE).write_bytes(sealed(self._manifest | {"files": files}))
        is_sound = content == self._graphs[name]
        return lambda: self._use(bundle, role, is_listed or is_sound)

    def _changed(self, rng: Random, content: bytes) -> bytes:
        """Most changes are in the graph itself: any to a function's body is refused."""
        fields = read_fields(content)
        place = next((n for n, field in enumerate(fields) if field.number == _GRAPH), None)
        if place is None or rng.random() < 0.25:
            return change_message(rng, content, self._donors)
        changed = change_message(rng, fields[place].content, self._donors, (_GRAPH,))
        fields[place] = Field(_GRAPH, BYTES, changed)
        return write_fields(fields)

    def _use(self, folder: Path, role: str, may_open: bool) -> None:
        bundle = Bundle.open(folder)
        require(may_open, "a graph that is not what the manifest says")
        _require_as_onnx_reads_it(bundle.checked_graph(role).read_bytes())
        kind, _, cache = role.partition(".")
        cache_type = next(name for name in CACHE_TYPES if name == (cache or "float32"))
        model = open_bundle(folder, threads=1, max_context=16, cache=cache_type)
        if kind == "batch":
            contexts = [model.new_context(), model.new_context()]
            for context in contexts:
                context.prefill([1, 2, 3])
            model.decode_batch(contexts, [4, 5])
        else:
            draft = 1 if kind == "mtp" else 0
            list(model.generate([1, 2, 3], max_new_tokens=3, draft=draft))


def _require_as_onnx_reads_it(content: bytes) -> None:
    """What was checked must be what onnxruntime, which reads as onnx does, is going to run."""
    try:
        theirs = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        require(False, f"a graph that onnx refuses: {error}")
    ours = read_graph(content, "graph")
    require(
        [(node.op, node.inputs, node.outputs, set(node.attributes)) for node in ours.nodes]
        == [_as_we_read(node) for node in theirs.graph.node],
        "other nodes than onnx reads",
    )
    tensors = theirs.graph.initializer
    require(
        [
            (tensor.name, tensor.data_type, tensor.dims, tensor.external)
            for tensor in ours.initializers
        ]
        == [(t.name, t.data_type & _UNSIGNED, tuple(t.dims), _places(t)) for t in tensors],
        "other weights than onnx reads",
    )
    require(
        [function.op for function in ours.functions]
        == [f"{function.domain}::{function.name}" for function in theirs.functions],
        "other functions than onnx reads",
    )


def _as_we_read(node: onnx.NodeProto) -> tuple[str, tuple[str, ...], tuple[str, ...], set[str]]:
    op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return op, tuple(node.input), tuple(node.output), {part.name for part in node.attribute}


def _places(tensor: onnx.TensorProto) -> dict[str, str] | None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return {entry.key: entry.value for entry in tensor.external_data}


def _hostile_fields() -> Donors:
    """A loop without end, and functions that call each other twice, thirty deep."""
    loop = [
        Field(1, BYTES, b""),
        Field(2, BYTES, b"forever"),
        Field(4, BYTES, b"Loop"),
        Field(5, BYTES, write_fields([Field(1, BYTES, b"body"), Field(_SUBGRAPH, BYTES, b"")])),
    ]
    calls = []
    for level in range(30):
        node = Field(7, BYTES, write_fields(_call(level + 1)))
        calls.append(
            Field(_FUNCTIONS, BYTES, write_fields([Field(1, BYTES, b"F%d" % level), node, node]))
        )
    return {(_GRAPH, _NODE): [Field(_NODE, BYTES, write_fields(loop))], (_FUNCTIONS,): calls}


def _call(level: int) -> list[Field]:
    texts = ((1, b"x"), (2, b"y"), (4, b"F%d" % level), (7, b"shoal"))
    return [Field(number, BYTES, text) for number, text in texts]


def make(samples: Samples) -> GraphFormat:
    """The format, from its samples."""
    return GraphFormat(samples)
