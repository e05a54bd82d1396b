"""Runs one shoal op in onnxruntime, as a model of one node with its portable functions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnxruntime as ort
from numpy.typing import NDArray

from shoal.graphs.contract import IR_VERSION, OP_DOMAIN, OPSET_IMPORTS, WEIGHT_ALIGNMENT_BYTES
from shoal.graphs.functions import function_protos
from shoal.graphs.ops.spec import Attributes
from shoal.graphs.ops.table import OPS

Array = NDArray[Any]
Arrays = Mapping[str, Array]

WEIGHTS = {"weight", "bias", "gate_up", "down", "w_uk", "w_uv", "codes", "scales", "packed"}


class OneOpModels:
    """Writes and runs models of one node, each in its own folder.

    Weights are external data in a file beside the model, which onnxruntime maps. With a
    ``library``, ops that have a native kernel run on it.
    """

    def __init__(self, folder: Path, library: Path | None = None, threads: int = 1) -> None:
        self._folders = (folder / str(number) for number in itertools.count())
        self._library = library
        self._threads = threads

    def write(self, name: str, attributes: Attributes, inputs: Arrays, first_byte: int = 0) -> Path:
        """Write the model and let onnx.checker look at it; weights start at ``first_byte``."""
        folder = next(self._folders)
        folder.mkdir()
        graph = onnx.helper.make_graph(
            [_node(name, attributes, inputs)],
            "one_op",
            [_value_info(key, value) for key, value in inputs.items() if not is_weight(key)],
            [_output_info(key, kind, inputs) for key, kind in OPS[name].outputs.items()],
            initializer=_write_weights(folder / "weights.bin", inputs, first_byte),
        )
        model = onnx.helper.make_model(
            graph,
            functions=function_protos([(name, attributes)]),
            opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in OPSET_IMPORTS.items()],
            ir_version=IR_VERSION,
        )
        onnx.save(model, folder / "model.onnx")
        onnx.checker.check_model(folder / "model.onnx")
        return folder / "model.onnx"

    def open(
        self,
        name: str,
        attributes: Attributes,
        inputs: Arrays,
        optimized: Path | None = None,
        first_byte: int = 0,
    ) -> ort.InferenceSession:
        """A session of the model; ``optimized`` is where to save what onnxruntime made of it."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        if self._library is not None:
            options.register_custom_ops_library(str(self._library))
        if optimized is not None:
            options.log_severity_level = 3  # it warns that the saved graph is for this machine
            options.optimized_model_filepath = str(optimized)
        path = self.write(name, attributes, inputs, first_byte)
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, name: str, attributes: Attributes, inputs: Arrays) -> list[Array]:
        """The outputs of the op."""
        session = self.open(name, attributes, inputs)
        fed = {key: value for key, value in inputs.items() if not is_weight(key)}
        outputs: list[Array] = session.run(None, fed)
        return outputs


def is_weight(name: str) -> bool:
    """Whether the input of that name is a constant of the model."""
    return name.removesuffix("_scales") in WEIGHTS


def assert_near(found: Array, expected: Array, tolerance: float, bound: Array | float = 0) -> None:
    """Compare, relative to the largest expected value, and say where it differs most.

    ``bound`` is an absolute error to allow for each value on top.
    """
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    allowed = np.broadcast_to(tolerance * np.abs(expected).max() + bound, found.shape)
    error = np.abs(found - expected)
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), (
        f"max error {error.max():.3e} (allowed {allowed[worst]:.3e} at {worst}), "
        f"largest value {np.abs(expected).max():.3e}"
    )


def _node(name: str, attributes: Attributes, inputs: Arrays) -> onnx.NodeProto:
    kwargs: dict[str, Any] = dict(attributes)
    return onnx.helper.make_node(
        name, list(inputs), list(OPS[name].outputs), domain=OP_DOMAIN, **kwargs
    )


def _write_weights(path: Path, inputs: Arrays, first_byte: int) -> list[onnx.TensorProto]:
    tensors, offset = [], first_byte
    with path.open("wb") as file:
        for name, value in inputs.items():
            if not is_weight(name):
                continue
            file.seek(offset)
            file.write(value.tobytes())
            dtype = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            tensor = onnx.TensorProto(name=name, data_type=dtype, dims=value.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": path.name, "offset": offset, "length": value.nbytes}
            for key, entry in place.items():
                tensor.external_data.add(key=key, value=str(entry))
            tensors.append(tensor)
            offset += -(-value.nbytes // WEIGHT_ALIGNMENT_BYTES) * WEIGHT_ALIGNMENT_BYTES
    return tensors


def _value_info(name: str, value: Array) -> onnx.ValueInfoProto:
    dtype = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    shape = [f"{name}_{axis}" for axis in range(value.ndim)]
    return onnx.helper.make_tensor_value_info(name, dtype, shape)


def _output_info(name: str, kind: str, inputs: Arrays) -> onnx.ValueInfoProto:
    dtypes = {
        "f": np.float32,
        "h": np.float16,
        "u": np.uint8,
        "i": np.int64,
        "c": inputs["cache"].dtype if "cache" in inputs else None,
    }
    dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtypes[kind[0]]))
    rank = kind.count(",") + 1
    if ".." in kind:  # the leading dimensions of the first input
        first, value = next(iter(inputs.items()))
        rank = value.ndim + (first == "input_ids")
    shape = [f"{name}_{axis}" for axis in range(rank)]
    return onnx.helper.make_tensor_value_info(name, dtype, shape)
