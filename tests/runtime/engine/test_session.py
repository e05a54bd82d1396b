from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shoal.graphs.errors import RuntimeFailure
from shoal.runtime.engine.session import GraphSession, SessionSettings

pytestmark = pytest.mark.dependencies

SETTINGS = SessionSettings(threads=1, kernels="portable")


@pytest.fixture
def graph(tmp_path):
    """y = x + 1 over float32 [1, n]."""
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "n"]) for n in "xy"]
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"])], "g", values[:1], values[1:], [one]
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    onnx.save(model, tmp_path / "g.onnx")
    return GraphSession(tmp_path / "g.onnx", SETTINGS)


def test_a_binding_reads_and_writes_the_arrays_in_place(graph):
    binding = graph.new_binding()
    x = np.arange(8, dtype=np.float32)[None]
    y = np.zeros_like(x)
    binding.bind_input("x", x)
    binding.bind_output("y", y)
    binding.run()
    np.testing.assert_array_equal(y, x + 1)
    binding.bind_input_at("x", np.float32, (1, 3), y.ctypes.data)
    binding.bind_output_at("y", np.float32, (1, 3), y.ctypes.data)
    binding.run()
    np.testing.assert_array_equal(y[0, :4], [2, 3, 4, 4])


def test_what_onnxruntime_refuses_is_one_line(graph):
    binding = graph.new_binding()
    binding.bind_input("x", np.zeros((2, 3), np.float32))
    binding.bind_output("y", np.zeros((2, 3), np.float32))
    with pytest.raises(RuntimeFailure) as raised:
        binding.run()
    assert "g.onnx: onnxruntime failed (" in str(raised.value)
    assert str(raised.value).isprintable()
