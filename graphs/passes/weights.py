"""Weights of a graph before and after they have a place in weights.bin.

While a graph is built its weights are initializers with a name, a type and a shape but no data.
``place_weights`` gives each one its offset in weights.bin; the bytes are never in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Container

import onnx_ir as ir

from shoal.graphs.contract import WEIGHT_ALIGNMENT_BYTES, WEIGHTS_FILE
from shoal.graphs.manifest import TensorInfo

_DTYPE_NAMES = {ir.DataType.UINT8: "uint8", ir.DataType.FLOAT: "float32"}


class WeightPlan:
    """Where each tensor lies in weights.bin: laid out in the order of placing, page-aligned."""

    def __init__(self) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self.total_bytes = 0

    def place(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], *, is_packed: bool = False
    ) -> TensorInfo:
        """The place of tensor ``name``; a name that is known already keeps its place.

        Args:
            name: of the tensor.
            dtype: of what the graph declares.
            shape: of what the graph declares.
            is_packed: two 4-bit values to a byte, which the plan tells as uint4 of twice the
                length.
        """
        size = math.prod(shape) * dtype.itemsize
        known = self.tensors.get(name)
        if known is not None:
            assert known.size == size, f"{name} is used with two sizes"
            return known
        offset = -(-self.total_bytes // WEIGHT_ALIGNMENT_BYTES) * WEIGHT_ALIGNMENT_BYTES
        info = TensorInfo(
            dtype="uint4" if is_packed else _DTYPE_NAMES[dtype],
            shape=(*shape[:-1], 2 * shape[-1]) if is_packed else shape,
            offset=offset,
            size=int(size),
        )
        self.tensors[name] = info
        self.total_bytes = offset + info.size
        return info


def new_weight(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """A weight without a place yet."""
    return ir.Value(
        name=name,
        shape=ir.Shape(shape),
        type=ir.TensorType(dtype),
        const_value=_external(name, dtype, shape, offset=0),
    )


def is_weight(value: ir.Value | None) -> bool:
    """Whether ``value`` is an initializer whose bytes lie in weights.bin."""
    return value is not None and isinstance(value.const_value, ir.ExternalTensor)


def weight_shape(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of a weight."""
    assert value is not None, "a weight is no absent input"
    assert value.shape is not None, f"{value.name} has a shape"
    return tuple(n for n in value.shape if isinstance(n, int))


def replace_initializers(graph: ir.Graph, replacements: dict[str, list[ir.Value]]) -> None:
    """Swap initializers for others, keeping the order; ``replacements`` is by the old name."""
    old = list(graph.initializers.values())
    graph.initializers.clear()
    for value in old:
        for new in replacements.get(value.name or "", [value]):
            graph.register_initializer(new)


def place_weights(model: ir.Model, plan: WeightPlan, packed: Container[str] = ()) -> None:
    """Give every weight of ``model`` its offset in weights.bin, in the order of ``plan``.

    Args:
        model: the graph.
        plan: takes the places.
        packed: names of the weights that have two 4-bit values in a byte.
    """
    for name, value in model.graph.initializers.items():
        if is_weight(value) and value.dtype is not None:
            shape = weight_shape(value)
            info = plan.place(name, value.dtype, shape, is_packed=name in packed)
            value.const_value = _external(name, value.dtype, shape, offset=info.offset)


def _external(
    name: str, dtype: ir.DataType, shape: tuple[int, ...], *, offset: int
) -> ir.ExternalTensor:
    length = int(math.prod(shape) * dtype.itemsize)
    return ir.ExternalTensor(WEIGHTS_FILE, offset, length, dtype, shape=ir.Shape(shape), name=name)
