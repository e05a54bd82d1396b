"""Small graphs for the tests of passes: built by hand, described as text, run by onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from tests.graphs.one_op import Array

from shoal.graphs.contract import IR_VERSION, OP_DOMAIN, OPSET_IMPORTS, WEIGHTS_FILE
from shoal.graphs.functions import function_protos
from shoal.graphs.passes.weights import WeightPlan, is_weight, new_weight, place_weights

Shape = Sequence[int | str]
FLOAT, INT64, UINT8 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.UINT8


class SmallGraph:
    """A graph under construction; ``model`` is what a pass takes."""

    def __init__(self) -> None:
        graph = ir.Graph([], [], nodes=[], name="small", opset_imports=dict(OPSET_IMPORTS))
        self.model = ir.Model(graph, ir_version=IR_VERSION)

    def input(self, name: str, dtype: ir.DataType, shape: Shape) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.model.graph.inputs.append(value)
        return value

    def weight(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        value = new_weight(name, FLOAT, shape)
        self.model.graph.register_initializer(value)
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[str],
        *,
        domain: str = OP_DOMAIN,
        **attributes: float | Sequence[int],
    ) -> list[ir.Value]:
        """Add a node, named after its first output; the values it computes."""
        node = ir.node(
            op_type,
            inputs,
            attributes,
            domain=domain,
            outputs=[ir.Value(name=name) for name in outputs],
            name=f"{outputs[0]}/{op_type}",
        )
        self.model.graph.append(node)
        return list(node.outputs)

    def output(self, value: ir.Value, dtype: ir.DataType, shape: Shape) -> None:
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        self.model.graph.outputs.append(value)


def described(model: ir.Model) -> list[str]:
    """A graph as lines: inputs, weights, nodes and outputs in their order."""
    graph = model.graph
    return [
        *(f"input {_typed(value)}" for value in graph.inputs),
        *(f"weight {_typed(value)}" for value in graph.initializers.values() if is_weight(value)),
        *(_described_node(node) for node in graph),
        *(f"output {_typed(value)}" for value in graph.outputs),
    ]


def lines(text: str) -> list[str]:
    r"""The lines of an expected description, without indentation; ``\`` continues a line."""
    joined = re.sub(r"\\\n *", "", text)
    return [line.strip() for line in joined.splitlines() if line.strip()]


def run(
    model: ir.Model, weights: Mapping[str, Array], inputs: Mapping[str, Array], folder: Path
) -> dict[str, Array]:
    """What onnxruntime computes, with the weights in weights.bin and the ops in portable form."""
    model = model.clone()
    plan = WeightPlan()
    place_weights(model, plan)
    content = bytearray(plan.total_bytes)
    for name, info in plan.tensors.items():
        content[info.offset : info.offset + info.size] = weights[name].tobytes()
    folder.mkdir()
    (folder / WEIGHTS_FILE).write_bytes(content)
    used = [
        (node.op_type, {key: attribute.value for key, attribute in node.attributes.items()})
        for node in model.graph
        if node.domain == OP_DOMAIN
    ]
    proto = ir.to_proto(model)
    proto.functions.extend(function_protos(used))
    onnx.save(proto, folder / "model.onnx")
    onnx.checker.check_model(folder / "model.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _typed(value: ir.Value) -> str:
    dtype = "?" if value.dtype is None else value.dtype.numpy().name
    shape = "?" if value.shape is None else ",".join(str(length) for length in value.shape)
    return f"{value.name} {dtype}[{shape}]"


def _described_node(node: ir.Node) -> str:
    results = ", ".join(str(value.name) for value in node.outputs)
    taken = ", ".join("" if value is None else str(value.name) for value in node.inputs)
    attributes = ", ".join(
        f"{name}={_attribute(attribute.value)}" for name, attribute in node.attributes.items()
    )
    prefix = f"{node.domain}." if node.domain else ""
    return f"{results} = {prefix}{node.op_type}({taken}) {{{attributes}}}"


def _attribute(value: Any) -> str:
    return str(np.float32(value)) if isinstance(value, float) else str(value)
