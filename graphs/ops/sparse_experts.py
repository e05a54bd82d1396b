"""shoal::FloatSparseExperts and shoal::SparseExperts: the routed SwiGLU experts.

D hidden size, E experts, K chosen experts, F expert width. Rows of gate_up are interleaved:
gate 0, up 0, gate 1, up 1, ... The expert id E, one past the last, stands for no expert.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.graphs.ops.linear import float_linear, linear
from shoal.graphs.ops.spec import LONGEST_SHORT_STEP, OpSpec, fixed_body
from shoal.graphs.quantize import Codes, Floats, unpack_nibbles

_ATTRIBUTES = """k: int = @num_experts_per_tok, activation_type: string = "swiglu",
    swiglu_fusion: int = 1, activation_alpha: float = 1.0, activation_beta: float = 0.0"""

# From ids and weights [..,K] to one row of E weights for each token, 0 where not chosen. What is
# chosen of no expert goes to one more column, which is left out again.
_DENSE_WEIGHTS = """
    last = Constant <value_ints: ints = [-1]> ()
    x_shape = Shape (x)
    D = Shape <start: int = -1> (x)
    K = Shape <start: int = -1> (expert_ids)
    E = Shape <end: int = 1> (gate_up)
    TD = Concat <axis: int = 0> (last, D)
    TK = Concat <axis: int = 0> (last, K)
    x_TD = Reshape (x, TD)
    ids_TK = Reshape (expert_ids, TK)
    weights_TK = Reshape (expert_weights, TK)
    T = Shape <end: int = 1> (ids_TK)
    one = Constant <value_ints: ints = [1]> ()
    columns = Add (E, one)
    TE1 = Concat <axis: int = 0> (T, columns)
    zeros_TE1 = ConstantOfShape (TE1)
    dense_TE1 = ScatterElements <axis: int = 1> (zeros_TE1, ids_TK, weights_TK)
    zero = Constant <value_ints: ints = [0]> ()
    dense_TE = Slice (dense_TE1, zero, E, one)
"""

FLOAT_SPARSE_EXPERTS = OpSpec(
    name="FloatSparseExperts",
    doc=(
        "y = sum_k expert_weights_k * down[e_k] (silu(gate) * up), where gate and up are the even "
        "and the odd rows of gate_up[e_k] x and e = expert_ids. The ids of a token are distinct, "
        "but for E, which adds nothing; the weights are not negative. Float32 throughout."
    ),
    source="DeepSeek-V3, arXiv 2412.19437, eq. 12",
    inputs={
        "x": "f[..,D]",
        "expert_ids": "i[..,K]",
        "expert_weights": "f[..,K]",
        "gate_up": "f[E,2F,D]",
        "down": "f[E,D,F]",
    },
    outputs={"y": "f[..,D]"},
    attributes={"num_experts_per_tok": "int"},
    # MoE weighs the chosen experts with the softmax of their router values: the softmax of
    # log(w) is w / sum(w), and the sum is multiplied back in. 1e-38 keeps log finite; an expert
    # that was not chosen is never among the k largest unless a chosen one weighs nothing.
    body=fixed_body(f"""
        {_DENSE_WEIGHTS}
        floor = Constant <value_float: float = 1e-38> ()
        positive_TE = Max (dense_TE, floor)
        logits_TE = Log (positive_TE)
        mean_TD = com.microsoft.MoE <{_ATTRIBUTES}> (x_TD, logits_TE, gate_up, , down)
        is_expert = Less (ids_TK, E)
        nothing = Constant <value_float: float = 0.0> ()
        counted_TK = Where (is_expert, weights_TK, nothing)
        sums_T1 = ReduceSum <keepdims: int = 1> (counted_TK, last)
        y_TD = Mul (mean_TD, sums_T1)
        y = Reshape (y_TD, x_shape)
    """),
)

SPARSE_EXPERTS = OpSpec(
    name="SparseExperts",
    doc=(
        "FloatSparseExperts with int8 gate_up and down; x and silu(gate) * up are quantized per "
        "row and block of block_size as in Linear."
    ),
    source="onnxruntime contrib operator com.microsoft.QMoE, expert_weight_bits 8",
    inputs={
        "x": "f[..,D]",
        "expert_ids": "i[..,K]",
        "expert_weights": "f[..,K]",
        "gate_up": "u[E,2F,D]",
        "gate_up_scales": "f[E,2F,D/block_size]",
        "down": "u[E,D,F]",
        "down_scales": "f[E,D,F/block_size]",
    },
    outputs={"y": "f[..,D]"},
    attributes={"num_experts_per_tok": "int", "block_size": "int"},
    # In what order QMoE adds the experts of a row depends on the rows beside it, but a token of a
    # short step must get the same bits as alone. So each of its K experts gets a row of its own (P
    # rows for a token) and the rows are added outside; no expert is read more often for it. Long
    # prompts keep one row for a token (P is 1), because QMoE's scratch memory grows with the rows.
    # Input 14 gives the weights; the second input only chooses, so the same rows serve for both.
    body=fixed_body(f"""
        last = Constant <value_ints: ints = [-1]> ()
        one = Constant <value_ints: ints = [1]> ()
        x_shape = Shape (x)
        D = Shape <start: int = -1> (x)
        K = Shape <start: int = -1> (expert_ids)
        E = Shape <end: int = 1> (gate_up)
        T1D = Concat <axis: int = 0> (last, one, D)
        x_T1D = Reshape (x, T1D)
        T = Shape <end: int = 1> (x_T1D)
        longest = Constant <value_ints: ints = [{LONGEST_SHORT_STEP}]> ()
        is_short = LessOrEqual (T, longest)
        P = Where (is_short, K, one)
        TPD = Concat <axis: int = 0> (T, P, D)
        x_TPD = Expand (x_T1D, TPD)
        rD = Concat <axis: int = 0> (last, D)
        x_rD = Reshape (x_TPD, rD)
        experts_per_row = Div (K, P)
        rK = Concat <axis: int = 0> (last, experts_per_row)
        ids_rK = Reshape (expert_ids, rK)
        weights_rK = Reshape (expert_weights, rK)
        num_rows = Mul (T, P)
        columns = Add (E, one)
        rE1 = Concat <axis: int = 0> (num_rows, columns)
        zeros_rE1 = ConstantOfShape (rE1)
        dense_rE1 = ScatterElements <axis: int = 1> (zeros_rE1, ids_rK, weights_rK)
        zero = Constant <value_ints: ints = [0]> ()
        dense_rE = Slice (dense_rE1, zero, E, one)
        y_rD = com.microsoft.QMoE <{_ATTRIBUTES}, expert_weight_bits: int = 8,
            block_size: int = @block_size, normalize_routing_weights: int = 0>
            (x_rD, dense_rE, gate_up, gate_up_scales, , down, down_scales, , , , , , , , dense_rE)
        y_TPD = Reshape (y_rD, TPD)
        y_TD = ReduceSum <keepdims: int = 0> (y_TPD, one)
        y = Reshape (y_TD, x_shape)
    """),
)


INT4_SPARSE_EXPERTS = OpSpec(
    name="Int4SparseExperts",
    doc=(
        "SparseExperts with weights of 4 bits. A byte holds two neighbours, the first in its low "
        "half; a value is (16 * nibble - 128) * scale, so that a nibble moved to the upper half of "
        "a byte is an int8 code and everything after that is SparseExperts."
    ),
    source="graphs/quantize.py, unpack_nibbles",
    inputs={
        "x": "f[..,D]",
        "expert_ids": "i[..,K]",
        "expert_weights": "f[..,K]",
        "gate_up": "u[E,2F,D/2]",
        "gate_up_scales": "f[E,2F,D/block_size]",
        "down": "u[E,D,F/2]",
        "down_scales": "f[E,D,F/block_size]",
    },
    outputs={"y": "f[..,D]"},
    attributes=SPARSE_EXPERTS.attributes,
    uses=("UnpackNibbles", "SparseExperts"),
    # onnxruntime folds the unpacked weights into constants when it opens the graph. Its QMoE with
    # 4 bits would not need that, but multiplies in float32: other results, at a tenth of the speed.
    body=fixed_body("""
        gate_up_codes = shoal.UnpackNibbles (gate_up)
        down_codes = shoal.UnpackNibbles (down)
        y = shoal.SparseExperts <num_experts_per_tok: int = @num_experts_per_tok,
            block_size: int = @block_size>
            (x, expert_ids, expert_weights, gate_up_codes, gate_up_scales, down_codes, down_scales)
    """),
)

UNPACK_NIBBLES = OpSpec(
    name="UnpackNibbles",
    doc="Two codes of every byte: its low half times 16, then its high half times 16.",
    source="graphs/quantize.py, unpack_nibbles",
    inputs={"packed": "u[..,K]"},
    outputs={"codes": "u[..,2*K]"},
    attributes={},
    body=fixed_body("""
        four = Constant <value = uint8 {4}> ()
        upper = Constant <value = uint8 {240}> ()
        last = Constant <value_ints: ints = [-1]> ()
        low = BitShift <direction: string = "LEFT"> (packed, four)
        high = BitwiseAnd (packed, upper)
        low_column = Unsqueeze (low, last)
        high_column = Unsqueeze (high, last)
        pairs = Concat <axis: int = -1> (low_column, high_column)
        lead = Shape <end: int = -1> (packed)
        shape = Concat <axis: int = 0> (lead, last)
        codes = Reshape (pairs, shape)
    """),
)


def float_sparse_experts(
    x: Floats,
    expert_ids: NDArray[np.int64],
    expert_weights: Floats,
    gate_up: Floats,
    down: Floats,
) -> Floats:
    """NumPy reference of FloatSparseExperts; shapes as in its spec."""
    x_TD, ids_TK, weights_TK = _as_rows(x, expert_ids, expert_weights)
    y_TD = np.zeros_like(x_TD)
    for expert in np.unique(ids_TK[ids_TK < len(gate_up)]):
        rows, slots = np.nonzero(ids_TK == expert)
        hidden = swiglu(float_linear(x_TD[rows], gate_up[expert]))
        y_TD[rows] += weights_TK[rows, slots, None] * float_linear(hidden, down[expert])
    return y_TD.reshape(x.shape)


def sparse_experts(
    x: Floats,
    expert_ids: NDArray[np.int64],
    expert_weights: Floats,
    gate_up: Codes,
    gate_up_scales: Floats,
    down: Codes,
    down_scales: Floats,
) -> Floats:
    """NumPy reference of SparseExperts; shapes as in its spec."""
    x_TD, ids_TK, weights_TK = _as_rows(x, expert_ids, expert_weights)
    gate_up_blocks = gate_up.reshape(*gate_up_scales.shape, -1)
    down_blocks = down.reshape(*down_scales.shape, -1)
    y_TD = np.zeros_like(x_TD)
    for e in np.unique(ids_TK[ids_TK < len(gate_up)]):
        rows, slots = np.nonzero(ids_TK == e)
        hidden = swiglu(linear(x_TD[rows], gate_up_blocks[e], gate_up_scales[e]))
        y = linear(hidden, down_blocks[e], down_scales[e])
        y_TD[rows] += weights_TK[rows, slots, None] * y
    return y_TD.reshape(x.shape)


def int4_sparse_experts(
    x: Floats,
    expert_ids: NDArray[np.int64],
    expert_weights: Floats,
    gate_up: Codes,
    gate_up_scales: Floats,
    down: Codes,
    down_scales: Floats,
) -> Floats:
    """NumPy reference of Int4SparseExperts; shapes as in its spec."""
    codes, down_codes = unpack_nibbles(gate_up), unpack_nibbles(down)
    return sparse_experts(
        x, expert_ids, expert_weights, codes, gate_up_scales, down_codes, down_scales
    )


def swiglu(gate_up: Floats) -> Floats:
    """silu(gate) * up of interleaved values: [..,2F] -> [..,F]."""
    gate, up = gate_up[..., 0::2], gate_up[..., 1::2]
    with np.errstate(over="ignore"):  # exp may reach inf; gate / inf is the right 0
        hidden: Floats = gate / (1 + np.exp(-gate)) * up
    return hidden


def _as_rows(
    x: Floats, expert_ids: NDArray[np.int64], expert_weights: Floats
) -> tuple[Floats, NDArray[np.int64], Floats]:
    num_chosen = expert_ids.shape[-1]
    return (
        x.reshape(-1, x.shape[-1]),
        expert_ids.reshape(-1, num_chosen),
        expert_weights.reshape(-1, num_chosen),
    )
