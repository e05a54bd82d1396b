"""Trace PyTorch reference modules into graph templates.

A template is the ONNX form of one module: nodes, activations in and out, and weights by parameter
name. Depth costs no tracing: each kind of module is traced once and stamped as often as the model
has it (export/tracing/stack.py). All of them are traced in one go, side by side in one graph that
is cut apart afterwards: what torch does before and after each trace takes longer than the modules
do.
Tracing runs on fake tensors, so no weight is ever allocated.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from shoal.graphs.contract import ONNX_OPSET

_FREE_DIMENSIONS = ("T", "S")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A module that is to become a template, or a method of one.

    Attributes:
        build: makes the module; called under fake tensors.
        inputs: name and shape of each activation, in the order of the call; an entry that is a
            string is a dimension that stays free ("T", "S").
        outputs: names of the results, for messages and readable graphs.
        call: called with the module and the activations.
        integer_inputs: whether the activations are int64 instead of float32.
    """

    build: Callable[[], nn.Module]
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: tuple[str, ...]
    call: Callable[..., Any] = nn.Module.__call__
    integer_inputs: bool = False


@dataclass(frozen=True, kw_only=True)
class Template:
    """One traced module.

    Attributes:
        inputs: activations in, in the order of the call.
        outputs: activations out.
        weights: the parameters that are used, by their name in the module's state_dict.
        constants: small tensors the graph needs (shapes, axes), with their data.
        nodes: in topological order.
    """

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    weights: dict[str, ir.Value]
    constants: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]


def trace(parts: Mapping[str, Part]) -> dict[str, Template]:
    """The template of each part, by its name."""
    arguments: list[Tensor] = []
    dynamic: list[dict[int, Any]] = []
    with FakeTensorMode(), torch.no_grad():
        side_by_side = _SideBySide(parts).eval()
        for index, (name, part) in enumerate(parts.items()):
            # Distinct sizes above 1, so that no free dimension is taken for a constant or for
            # another one; each part has its own, or it would read its length off another's input.
            sizes = {letter: 7 + 12 * i + 29 * index for i, letter in enumerate(_FREE_DIMENSIONS)}
            free = {n: torch.export.Dim(_dimension(n, name), min=2) for n in _FREE_DIMENSIONS}
            dtype = torch.int64 if part.integer_inputs else torch.float32
            for shape in part.inputs.values():
                length = [n if isinstance(n, int) else sizes[n] for n in shape]
                arguments.append(torch.zeros(length, dtype=dtype))
                dynamic.append({axis: free[str(n)] for axis, n in enumerate(shape) if n in free})
    with torch.no_grad(), _quiet_torch():
        program = torch.onnx.export(
            side_by_side,
            tuple(arguments),
            dynamo=True,
            opset_version=ONNX_OPSET,
            dynamic_shapes=(tuple(dynamic),),
            input_names=[f"{name}.{i}" for name, part in parts.items() for i in part.inputs],
            output_names=[f"{name}.{o}" for name, part in parts.items() for o in part.outputs],
            optimize=False,
            verbose=False,
        )
        assert program is not None
        return _templates(program.model, parts)


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Keep what torch says about its own internals from the user; everything is put back."""
    exporter = logging.getLogger("torch.onnx._internal.exporter")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


class _SideBySide(nn.Module):
    """Modules that have nothing to do with each other, in one call."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self._parts = list(parts.values())
        self.parts = nn.ModuleDict({name: part.build() for name, part in parts.items()})

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """All outputs of all parts, in order, from all their inputs, in order."""
        remaining = iter(inputs)
        outputs: list[Tensor] = []
        for part, module in zip(self._parts, self.parts.values(), strict=True):
            result = part.call(module, *islice(remaining, len(part.inputs)))
            outputs.extend([result] if isinstance(result, Tensor) else result)
        return tuple(outputs)


def _dimension(letter: str, part: str) -> str:
    return f"{letter}_{part}"


def _templates(model: ir.Model, parts: Mapping[str, Part]) -> dict[str, Template]:
    """Fold constants and cut the graph into what each part has of it."""
    graph = model.graph
    num_activations = len(graph.inputs)
    # As graph inputs the weights are opaque to the optimizer, which must not look for their data.
    for name in [name for name in graph.initializers if name.startswith("parts.")]:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    onnxscript.optimizer.optimize(model)
    inputs, outputs = iter(graph.inputs[:num_activations]), iter(graph.outputs)
    return {
        name: _template(
            graph,
            name,
            tuple(islice(inputs, len(part.inputs))),
            tuple(islice(outputs, len(part.outputs))),
            graph.inputs[num_activations:],
        )
        for name, part in parts.items()
    }


def _template(
    graph: ir.Graph,
    part: str,
    inputs: tuple[ir.Value, ...],
    outputs: tuple[ir.Value, ...],
    weights: Iterable[ir.Value],
) -> Template:
    """What ``outputs`` are computed from."""
    reached = _nodes_behind(outputs)
    nodes = tuple(node for node in graph if node in reached)
    names = {_dimension(letter, part): letter for letter in _FREE_DIMENSIONS}
    for value in (value for node in nodes for value in node.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(length, names) for length in value.shape])
    used = {value for node in nodes for value in node.inputs}
    prefix = f"parts.{part}."
    template = Template(
        inputs=inputs,
        outputs=outputs,
        weights={(v.name or "").removeprefix(prefix): v for v in weights if v in used},
        constants=tuple(value for value in graph.initializers.values() if value in used),
        nodes=nodes,
    )
    known = {*inputs, *template.weights.values(), *template.constants, None}
    known.update(value for node in nodes for value in node.outputs)
    assert used <= known, f"{part} depends on another part"
    return template


def _nodes_behind(outputs: Iterable[ir.Value]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    pending: list[ir.Value | None] = list(outputs)
    while pending:
        value = pending.pop()
        node = None if value is None else value.producer()
        if node is not None and node not in found:
            found.add(node)
            pending.extend(node.inputs)
    return found


def _renamed(length: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    if isinstance(length, int):
        return length
    return None if length.value is None else names.get(length.value, length.value)
