"""Inputs of the native kernels with shapes that leave odd ends, and what they give on a machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tests.graphs.one_op import Array, OneOpModels
from tests.graphs.op_inputs import float_inputs, int8_inputs
from tests.kernels import test_native_attention, test_native_experts, test_native_linear

from shoal.graphs.recipes import BLOCK_SIZES

Inputs = dict[str, Array]
RUN = {
    "Linear": lambda models, inputs: [test_native_linear.run(models, inputs)],
    "PreciseLinear": lambda models, inputs: [
        test_native_linear.run(models, inputs, "PreciseLinear")
    ],
    "SparseExperts": lambda models, inputs: [test_native_experts.run(models, inputs)],
    "Int4SparseExperts": lambda models, inputs: [test_native_experts.run(models, inputs)],
    "LatentAttention": test_native_attention.run,
}


def op_cases() -> Iterator[tuple[str, str, Inputs]]:
    """Name, op and inputs of each case."""
    for block_size in BLOCK_SIZES:
        for tokens, blocks, n in ((1, 3, 70), (2, 1, 5), (7, 2, 33), (41, 5, 77)):
            inputs = test_native_linear.make_inputs(tokens, tokens, blocks, n, block_size)
            yield f"linear-{block_size}-{tokens}", "Linear", inputs
            yield f"precise-{block_size}-{tokens}", "PreciseLinear", inputs
        for tokens in (1, 6, 40):
            inputs = test_native_experts.make_inputs(tokens, tokens, 5, 2, block_size, d=1, f=3)
            yield f"experts-{block_size}-{tokens}", "SparseExperts", inputs
            packed = test_native_experts.make_inputs(1, tokens, 5, 2, block_size, d=1, f=3, bits=4)
            yield f"int4-experts-{block_size}-{tokens}", "Int4SparseExperts", packed
        for tokens, past in ((1, 77), (5, 0), (40, 130)):
            shapes = {"h": 3, "n": 13, "r": 6, "c": block_size, "v": 9}
            floats = float_inputs(tokens, tokens, past + tokens, **shapes)
            inputs = int8_inputs(floats, block_size)
            yield f"attention-{block_size}-{tokens}", "LatentAttention", inputs


def write_results(folder: Path, library: Path, file: Path) -> None:
    """Run every case and keep the first output of each."""
    models = OneOpModels(folder, library)
    results: dict[str, Any] = {name: RUN[op](models, inputs)[0] for name, op, inputs in op_cases()}
    np.savez(file, **results)
