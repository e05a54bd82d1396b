"""shoal::DequantizeBlocks: int8 blocks to float32, for bodies of other ops."""

from __future__ import annotations

from shoal.graphs.ops.spec import OpSpec, fixed_body

DEQUANTIZE_BLOCKS = OpSpec(
    name="DequantizeBlocks",
    doc="y = (codes - 128) * scales, one scale for block_size neighbours in the last dimension.",
    source="graphs/quantize.py, dequantize_blocks",
    inputs={"codes": "u[..,K]", "scales": "f[..,K/block_size]"},
    outputs={"y": "f[..,K]"},
    attributes={"block_size": "int"},
    # Cast, Sub and Mul of constants are folded when onnxruntime loads the model, so nothing is
    # dequantized at run time; onnxruntime does not fold DequantizeLinear.
    body=fixed_body("""
        last = Constant <value_ints: ints = [-1]> ()
        size = Constant <value_int: int = @block_size> ()
        size_1d = Reshape (size, last)
        scales_shape = Shape (scales)
        blocks_shape = Concat <axis: int = 0> (scales_shape, size_1d)
        floats = Cast <to: int = 1> (codes)
        zero_point = Constant <value_float: float = 128.0> ()
        centred = Sub (floats, zero_point)
        blocks = Reshape (centred, blocks_shape)
        scale_column = Unsqueeze (scales, last)
        values = Mul (blocks, scale_column)
        shape = Shape (codes)
        y = Reshape (values, shape)
    """),
)
