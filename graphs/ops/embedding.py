"""shoal::FloatEmbedding and shoal::Embedding: rows of a table. W vocabulary, D hidden size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.graphs.ops.spec import OpSpec, fixed_body
from shoal.graphs.quantize import Codes, Floats, dequantize_blocks

FLOAT_EMBEDDING = OpSpec(
    name="FloatEmbedding",
    doc="Row input_ids of the table.",
    source="torch.nn.functional.embedding",
    inputs={"input_ids": "i[..]", "weight": "f[W,D]"},
    outputs={"y": "f[..,D]"},
    attributes={},
    body=fixed_body("y = Gather <axis: int = 0> (weight, input_ids)"),
)

EMBEDDING = OpSpec(
    name="Embedding",
    doc="Row input_ids of an int8 table: (weight - 128) * weight_scales, per block of block_size.",
    source="onnxruntime contrib operator com.microsoft.GatherBlockQuantized, bits 8",
    inputs={"input_ids": "i[..]", "weight": "u[W,D]", "weight_scales": "f[W,D/block_size]"},
    outputs={"y": "f[..,D]"},
    attributes={"block_size": "int"},
    # Without a zero-point input the zero point of uint8 data is 128.
    body=fixed_body(
        "y = com.microsoft.GatherBlockQuantized <bits: int = 8, block_size: int = @block_size, "
        "gather_axis: int = 0, quantize_axis: int = 1> (weight, input_ids, weight_scales)"
    ),
)


def float_embedding(input_ids: NDArray[np.int64], weight: Floats) -> Floats:
    """NumPy reference of FloatEmbedding: input_ids [..], weight [W,D] -> [..,D]."""
    return weight[input_ids]


def embedding(input_ids: NDArray[np.int64], weight: Codes, weight_scales: Floats) -> Floats:
    """NumPy reference of Embedding: weight [W,D], weight_scales [W,D/block_size] -> [..,D]."""
    return dequantize_blocks(weight[input_ids], weight_scales[input_ids])
