"""shoal::FloatLinear, Linear and PreciseLinear: a matrix product with a constant weight.

The two dimensions here are K (input features) and N (output features).
"""

from __future__ import annotations

import numpy as np

from shoal.graphs.ops.spec import OpSpec, fixed_body
from shoal.graphs.quantize import ZERO_POINT, Codes, Floats, quantize_activations

FLOAT_LINEAR = OpSpec(
    name="FloatLinear",
    doc="y = x weight^T in float32.",
    source="torch.nn.functional.linear",
    inputs={"x": "f[..,K]", "weight": "f[N,K]"},
    outputs={"y": "f[..,N]"},
    attributes={},
    # FusedMatMul reads the weight as it lies in the file; Transpose + MatMul would first fold a
    # transposed copy of every weight into memory.
    body=fixed_body("y = com.microsoft.FusedMatMul <transB: int = 1> (x, weight)"),
)

LINEAR = OpSpec(
    name="Linear",
    doc=(
        "y = x weight^T with an int8 weight; x is quantized too. Per block b of block_size inputs: "
        "a = max|x_b| / 127, y = sum_b a * weight_scales_b * sum_i round(x_i / a) * "
        "(weight_i - 128), the inner sum in int32, the outer in float32; round half to even."
    ),
    source="onnxruntime contrib operator com.microsoft.MatMulNBits, bits 8, accuracy_level 4",
    inputs={
        "x": "f[..,K]",
        "weight": "u[N,K/block_size,block_size]",
        "weight_scales": "f[N,K/block_size]",
    },
    outputs={"y": "f[..,N]"},
    attributes={"K": "int", "N": "int", "block_size": "int"},
    # Without accuracy_level 4 onnxruntime dequantizes the whole weight on each call.
    body=fixed_body(
        "y = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits: int = 8, "
        "block_size: int = @block_size, accuracy_level: int = 4> (x, weight, weight_scales)"
    ),
)

PRECISE_LINEAR = OpSpec(
    name="PreciseLinear",
    doc=(
        "Linear of x rounded to int8, plus Linear of what that rounding lost: 15 bits of x, for "
        "the weights whose inputs have outliers. Both come from one pass over the weight."
    ),
    source="this project; docs/accuracy.md has what it brings",
    inputs=LINEAR.inputs,
    outputs=LINEAR.outputs,
    attributes=LINEAR.attributes,
    uses=("Linear",),
    # Rounding the rounded values again changes nothing, so the sum is right whatever a Linear does
    # with its input; a machine without 8-bit instructions does not round it at all.
    body=fixed_body("""
        x_shape = Shape (x)
        lead = Shape <end: int = -1> (x)
        first = Constant <value_ints: ints = [0]> ()
        rest = Constant <value_ints: ints = [-1]> ()
        block = Constant <value_int: int = @block_size> ()
        block_1d = Unsqueeze (block, first)
        blocks_shape = Concat <axis: int = 0> (lead, rest, block_1d)
        blocks = Reshape (x, blocks_shape)
        sizes = Abs (blocks)
        peaks = ReduceMax <keepdims: int = 1> (sizes, rest)
        largest_code = Constant <value_float: float = 127.0> ()
        steps = Div (peaks, largest_code)
        smallest_step = Constant <value_float: float = 1.17549435e-38> ()
        steps_above_0 = Max (steps, smallest_step)
        reciprocals = Reciprocal (steps_above_0)
        positions = Mul (blocks, reciprocals)
        codes = Round (positions)
        rounded_blocks = Mul (codes, steps_above_0)
        lost_blocks = Sub (blocks, rounded_blocks)
        terms_blocks = Concat <axis: int = 0> (rounded_blocks, lost_blocks)
        two = Constant <value_ints: ints = [2]> ()
        terms_shape = Concat <axis: int = 0> (two, x_shape)
        terms = Reshape (terms_blocks, terms_shape)
        products = shoal.Linear <K: int = @K, N: int = @N, block_size: int = @block_size>
            (terms, weight, weight_scales)
        y = ReduceSum <keepdims: int = 0> (products, first)
    """),
)


def float_linear(x: Floats, weight: Floats) -> Floats:
    """NumPy reference of FloatLinear: x [..,K], weight [N,K] -> [..,N]."""
    y: Floats = np.matmul(x, weight.T)
    return y


def linear(x: Floats, weight: Codes, weight_scales: Floats) -> Floats:
    """NumPy reference of Linear.

    Args:
        x: float32 [..,K].
        weight: uint8 [N,K/block_size,block_size], zero point 128.
        weight_scales: float32 [N,K/block_size].

    Returns:
        float32 [..,N].
    """
    num_outputs, num_blocks, block_size = weight.shape
    codes, scales = quantize_activations(x.reshape(-1, num_blocks * block_size), block_size)
    # float32 holds these integer sums exactly: 256 * 127 * 127 < 2**24.
    a_bTk = codes.reshape(-1, num_blocks, block_size).transpose(1, 0, 2).astype(np.float32)
    w_bkN = weight.transpose(1, 2, 0).astype(np.float32) - ZERO_POINT
    sums_bTN = a_bTk @ w_bkN
    y: Floats = np.einsum("btn,tb,nb->tn", sums_bTN, scales, weight_scales, optimize=True)
    return y.reshape(*x.shape[:-1], num_outputs)


def precise_linear(x: Floats, weight: Codes, weight_scales: Floats) -> Floats:
    """NumPy reference of PreciseLinear; arguments as ``linear``."""
    block_size = weight.shape[-1]
    codes, scales = quantize_activations(x, block_size)
    blocks = codes.reshape(*scales.shape, block_size).astype(np.float32)
    rounded: Floats = (blocks * scales[..., None]).reshape(x.shape)
    return linear(rounded, weight, weight_scales) + linear(x - rounded, weight, weight_scales)
