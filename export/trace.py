"""Trace one PyTorch reference module into a graph template.

A template is the ONNX form of one module: nodes, activations in and out, and weights by parameter
name. Depth costs no tracing: each kind of layer is traced once and stamped as often as the model
has it (export/stack.py). Tracing runs on fake tensors, so no weight is ever allocated.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from shoal.graphs.contract import ONNX_OPSET


@dataclass(frozen=True, kw_only=True)
class Template:
    """One traced module.

    Attributes:
        inputs: activations in, in the order of the module's forward.
        outputs: activations out.
        weights: the module's parameters by their name in its state_dict.
        constants: small tensors the graph needs (shapes, axes), with their data.
        nodes: in topological order.
    """

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    weights: dict[str, ir.Value]
    constants: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]


def trace(
    build: Callable[[], nn.Module],
    inputs: dict[str, tuple[Any, ...]],
    outputs: tuple[str, ...],
    *,
    integer_inputs: tuple[str, ...] = (),
    fake: bool = True,
) -> Template:
    """Trace the module that ``build`` makes.

    Args:
        build: makes the module; called under fake tensors unless ``fake`` is false.
        inputs: name and shape of each argument of the module's forward, in its order; an entry
            that is a string is a dimension that stays free ("T", "S").
        outputs: names for the outputs, for messages and readable graphs.
        integer_inputs: which inputs are int64; the others are float32.
        fake: false traces real tensors, for modules that hold constants of their own.

    Returns:
        The template.
    """
    if fake:
        with FakeTensorMode(), torch.no_grad():
            return _trace(build(), inputs, outputs, integer_inputs)
    with torch.no_grad():
        return _trace(build(), inputs, outputs, integer_inputs)


def _trace(
    module: nn.Module,
    inputs: dict[str, tuple[Any, ...]],
    outputs: tuple[str, ...],
    integer_inputs: tuple[str, ...],
) -> Template:
    module.eval()
    # Distinct sizes above 1, so that no free dimension is taken for a constant or for another one.
    sizes = {"T": 7, "S": 19}
    free = {name: torch.export.Dim(name, min=2) for name in sizes}
    arguments = []
    dynamic = []
    for name, shape in inputs.items():
        dtype = torch.int64 if name in integer_inputs else torch.float32
        arguments.append(torch.zeros([sizes.get(n, n) for n in shape], dtype=dtype))
        dynamic.append({axis: free[n] for axis, n in enumerate(shape) if n in free})
    logging.getLogger("torch.onnx._internal.exporter").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # FutureWarnings of torch about its own internals.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(arguments),
            dynamo=True,
            opset_version=ONNX_OPSET,
            dynamic_shapes=tuple(dynamic),
            input_names=list(inputs),
            output_names=list(outputs),
            optimize=False,
            verbose=False,
        )
        assert program is not None
        return _template(program.model, set(module.state_dict()))


def _template(model: ir.Model, parameters: set[str]) -> Template:
    """Fold constants and split what is left into weights, constants and nodes."""
    graph = model.graph
    num_activations = len(graph.inputs)
    # As graph inputs the weights are opaque to the optimizer, which must not look for their data.
    for name in [n for n in graph.initializers if n in parameters]:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    onnxscript.optimizer.optimize(model)
    weights = {v.name or "": v for v in graph.inputs[num_activations:]}
    return Template(
        inputs=tuple(graph.inputs[:num_activations]),
        outputs=tuple(graph.outputs),
        weights=weights,
        constants=tuple(graph.initializers.values()),
        nodes=tuple(graph),
    )
