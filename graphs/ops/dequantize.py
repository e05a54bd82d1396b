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
    # All rows are gathered from a table with constant ids. onnxruntime keeps the node, so the
    # weights stay int8 in the mapped file: measured for w_uk and w_uv of DeepSeek-V2-Lite on one
    # x86 thread, 0.51 ms a layer and call against 0.72 ms with float weights that a chain of
    # Cast, Sub and Mul left after constant folding (and 4 to 28 times the memory).
    body=fixed_body("""
        first = Constant <value_int: int = 0> ()
        step = Constant <value_int: int = 1> ()
        num_rows_1d = Shape <end: int = 1> (codes)
        num_rows = Squeeze (num_rows_1d)
        rows = Range (first, num_rows, step)
        y = com.microsoft.GatherBlockQuantized <bits: int = 8, block_size: int = @block_size,
            gather_axis: int = 0, quantize_axis: int = -1> (codes, rows, scales)
    """),
)
