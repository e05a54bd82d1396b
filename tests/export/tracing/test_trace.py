"""Modules are traced side by side; what comes out for one knows nothing of the others."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from shoal.export.model.layers import Linear, RMSNorm, SwiGLU
from shoal.export.tracing.trace import Part, Template, trace

pytestmark = pytest.mark.dependencies

PARTS = {
    "network": Part(
        build=lambda: SwiGLU(16, 24), inputs={"x": (1, "T", 16)}, outputs=("network_out",)
    ),
    "norm": Part(build=lambda: RMSNorm(16, 1e-6), inputs={"x": (1, "T", 16)}, outputs=("y",)),
    "gate": Part(
        build=lambda: SwiGLU(16, 24),
        call=lambda module, x, rows: (module.gate_proj(x), rows.flatten(1)),
        inputs={"x": (1, "T", 16), "rows": (1, "S", 4, 2)},
        outputs=("y", "flat"),
    ),
}


def described(template: Template) -> list[object]:
    """The nodes with their types, shapes and connections, whatever torch has named them."""
    names: dict[object, object] = {None: None}
    names |= {value: f"input {i}" for i, value in enumerate(template.inputs)}
    names |= {value: name for name, value in template.weights.items()}
    for value in template.constants:
        assert value.const_value is not None
        names[value] = value.const_value.numpy().tolist()
    nodes: list[object] = []
    for index, node in enumerate(template.nodes):
        names |= {value: (index, i) for i, value in enumerate(node.outputs)}
        shapes = [(value.dtype, str(value.shape)) for value in node.outputs]
        nodes.append((node.domain, node.op_type, [names[v] for v in node.inputs], shapes))
    return [*nodes, [names[value] for value in template.outputs]]


def test_a_module_traced_beside_others_is_the_module_traced_alone() -> None:
    together = trace(PARTS)
    for name in ("network", "gate"):
        assert described(together[name]) == described(trace({name: PARTS[name]})[name])


def test_a_template_has_the_weights_that_its_part_uses() -> None:
    templates = trace(PARTS)
    weights: Mapping[str, set[str]] = {name: set(t.weights) for name, t in templates.items()}
    assert weights == {
        "network": {"gate_proj.weight", "up_proj.weight", "down_proj.weight"},
        "norm": {"weight"},
        "gate": {"gate_proj.weight"},
    }


def test_free_dimensions_of_all_parts_have_the_same_names() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = Linear(16, 8), Linear(8, 4)

        def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
            return self.up(x), self.down(cache)

    inputs: Mapping[str, tuple[int | str, ...]] = {"x": (1, "T", 16), "cache": (1, "S", 8)}
    part = Part(build=Both, inputs=inputs, outputs=("y", "z"))
    for template in trace({"a": part, "b": part}).values():
        assert [str(value.shape) for value in template.outputs] == ["[1,T,8]", "[1,S,4]"]


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not traceable")


@pytest.mark.parametrize("build", [lambda: RMSNorm(16, 1e-6), Untraceable])
def test_torch_may_log_and_warn_after_a_trace_as_before(build: Callable[[], nn.Module]) -> None:
    exporter = logging.getLogger("torch.onnx._internal.exporter")
    inputs: Mapping[str, tuple[int | str, ...]] = {"x": (1, "T", 16)}
    level, filters = exporter.level, list(warnings.filters)
    exporter.setLevel(logging.INFO)
    try:
        with contextlib.suppress(torch.onnx.OnnxExporterError):
            trace({"part": Part(build=build, inputs=inputs, outputs=("y",))})
        assert exporter.level == logging.INFO
        assert list(warnings.filters) == filters
    finally:
        exporter.setLevel(level)
