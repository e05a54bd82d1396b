"""The portable form of each shoal op: an ONNX model-local function.

onnxruntime inlines the function where no kernel of that name is registered. Bodies use standard
ONNX and com.microsoft ops, and other shoal functions where a spec says ``uses``.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.parser

from shoal.graphs.contract import OP_DOMAIN, OPSET_IMPORTS
from shoal.graphs.errors import ExportError
from shoal.graphs.ops.spec import Attributes, OpSpec
from shoal.graphs.ops.table import OPS


def function_proto(name: str, attributes: Attributes | None = None) -> onnx.FunctionProto:
    """The function of one op.

    Args:
        name: Name of the op, a key of ``OPS``.
        attributes: Attributes of the nodes it is for. Only the body of Route depends on them.

    Raises:
        ExportError: No op of that name.
    """
    spec = _spec(name)
    imports = ", ".join(f'"{domain}" : {version}' for domain, version in OPSET_IMPORTS.items())
    text = (
        f'<domain: "{OP_DOMAIN}", opset_import: [{imports}]>\n'
        f"{name} {_formal_attributes(spec)} ({', '.join(spec.inputs)})"
        f" => ({', '.join(spec.outputs)})\n{{\n{spec.body(attributes or {})}\n}}"
    )
    function = onnx.parser.parse_function(text)
    function.doc_string = f"{spec.doc}\n{_signature(spec)}\nSource: {spec.source}"
    return function


def function_protos(nodes: Iterable[tuple[str, Attributes]]) -> list[onnx.FunctionProto]:
    """The functions a model needs, each once, in the order of ``OPS``.

    Args:
        nodes: Op name and attributes of every node of domain ``shoal`` in the model.

    Raises:
        ExportError: An unknown op, missing or unexpected attributes, or two nodes of one op whose
            attributes call for different bodies (Route nodes that differ).
    """
    bodies: dict[str, str] = {}
    attributes_of: dict[str, Attributes] = {}
    for name, attributes in nodes:
        spec = _spec(name)
        _check_attributes(spec, attributes)
        body = spec.body(attributes)
        if bodies.setdefault(name, body) != body:
            raise ExportError(
                f"graph: expected equal attributes on all {name} nodes, found "
                f"{dict(attributes_of[name])} and {dict(attributes)}; export them as two graphs"
            )
        attributes_of[name] = attributes
        for used in spec.uses:
            attributes_of.setdefault(used, {})
    return [function_proto(name, attributes_of[name]) for name in OPS if name in attributes_of]


def _spec(name: str) -> OpSpec:
    if name not in OPS:
        raise ExportError(
            f"graph: expected a shoal op ({', '.join(OPS)}), found {name!r}; rename the node"
        )
    return OPS[name]


def _check_attributes(spec: OpSpec, attributes: Attributes) -> None:
    if set(attributes) != set(spec.attributes):
        raise ExportError(
            f"graph: expected attributes {sorted(spec.attributes)} on {spec.name}, found "
            f"{sorted(attributes)}; correct the node"
        )


def _formal_attributes(spec: OpSpec) -> str:
    return f"<{', '.join(spec.attributes)}>" if spec.attributes else ""


def _signature(spec: OpSpec) -> str:
    """The signature in words, so that a graph viewer shows shapes next to the names."""
    inputs = (
        f"{name} {kind}{' (optional)' if name in spec.optional_inputs else ''}"
        for name, kind in spec.inputs.items()
    )
    outputs = (f"{name} {kind}" for name, kind in spec.outputs.items())
    attributes = (f"{name} {kind}" for name, kind in spec.attributes.items())
    return (
        f"Inputs: {', '.join(inputs)}. Outputs: {', '.join(outputs)}. "
        f"Attributes: {', '.join(attributes) or 'none'}."
    )
