"""Stamp traced templates into the graphs of a bundle.

``GraphAssembly`` is one ONNX graph under construction: every ``stamp`` copies a template's nodes
with fresh value names and weights named after the layer they belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from shoal.export.tracing.trace import Template
from shoal.graphs.contract import IR_VERSION, OP_DOMAIN, OPSET_IMPORTS
from shoal.graphs.parameters import Parameter
from shoal.graphs.passes.weights import new_weight, weight_shape

_DOMAINS = ("", OP_DOMAIN, "com.microsoft")
"""As graphs list them; another order would change the bytes of every graph file."""


class GraphAssembly:
    """One graph of a bundle, assembled from templates."""

    def __init__(self, name: str) -> None:
        self._graph = ir.Graph(
            inputs=[],
            outputs=[],
            nodes=[],
            name=name,
            opset_imports={domain: OPSET_IMPORTS[domain] for domain in _DOMAINS},
        )
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """Add a graph input; a string in ``shape`` is a free dimension."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self._graph.inputs.append(value)
        return value

    def output(
        self, name: str, value: ir.Value, dtype: ir.DataType, shape: Sequence[int | str]
    ) -> None:
        """Make ``value`` a graph output under ``name``."""
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(dtype)
        self._graph.outputs.append(value)

    def stamp(
        self, template: Template, inputs: Sequence[ir.Value], prefix: str, weight_prefix: str
    ) -> list[ir.Value]:
        """Copy a template into the graph.

        Args:
            template: what to copy.
            inputs: values for the template's inputs, in order.
            prefix: put before the names of nodes and values, for example ``layers.3/``.
            weight_prefix: put before the names of the weights, for example ``layers.3.``; a weight
                that the graph has already is shared.

        Returns:
            The values of the template's outputs.
        """
        values: dict[ir.Value, ir.Value] = dict(zip(template.inputs, inputs, strict=True))
        weights = {weight_prefix + name: weight for name, weight in template.weights.items()}
        for name in sorted(weights, key=_is_routed_experts):
            values[weights[name]] = self._weight(name, weights[name])
        for constant in template.constants:
            values[constant] = self._constant(constant)
        for node in template.nodes:
            self._graph.append(_copy_node(node, values, prefix))
        return [values[output] for output in template.outputs]

    def model(self, functions: Sequence[ir.Function], doc: str) -> ir.Model:
        """The finished model, with the bodies of the functions its nodes use."""
        return ir.Model(
            self._graph,
            ir_version=IR_VERSION,
            producer_name="shoal",
            functions=functions,
            doc_string=doc,
        )

    def _weight(self, name: str, like: ir.Value) -> ir.Value:
        known = self._graph.initializers.get(name)
        if known is not None:
            return known
        assert like.dtype is not None
        value = new_weight(name, like.dtype, weight_shape(like))
        self._graph.register_initializer(value)
        return value

    def _constant(self, constant: ir.Value) -> ir.Value:
        """One shared copy of equal constants, so that depth does not multiply them."""
        tensor = constant.const_value
        assert tensor is not None, f"constant {constant.name} has data"
        key = (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        if key not in self._constants:
            name = f"constant.{len(self._constants)}"
            value = ir.Value(
                name=name,
                shape=ir.Shape(tensor.numpy().shape),
                type=ir.TensorType(tensor.dtype),
                const_value=ir.tensor(tensor.numpy(), name=name),
            )
            self._graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]


def _is_routed_experts(name: str) -> bool:
    """They come last in weights.bin: all else of a layer is at hand when they stream."""
    return Parameter.parse(name).is_routed_experts


def _copy_node(node: ir.Node, values: dict[ir.Value, ir.Value], prefix: str) -> ir.Node:
    assert all(
        a.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    ), f"{node.op_type}: the reference modules trace to graphs without subgraphs"
    copy = ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else values[value] for value in node.inputs],
        node.attributes,
        overload=node.overload,
        num_outputs=len(node.outputs),
        name=f"{prefix}{node.name}",
    )
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        new.name, new.shape, new.type = f"{prefix}{old.name}", old.shape, old.type
        values[old] = new
    return copy
