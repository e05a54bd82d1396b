"""Feeds the kernels damaged inputs: each must be refused by an error, none may crash.

``python -m tests.kernels.fuzz LIBRARY FOLDER --cases 20000 --seed 7`` runs as long as one likes,
best on a library built with sanitizers. A crash ends the process; the last line printed before it
names the seed of the case, which ``--seed N --cases 1`` repeats.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tests.graphs.one_op import Array, OneOpModels
from tests.graphs.op_inputs import float_inputs, int8_inputs, with_cache
from tests.kernels import test_native_experts, test_native_linear

from shoal.runtime.kernels.library import KernelLibrary, find_library

BLOCK = 16
_INTEGERS = (-(2**63), -17, -1, 0, 1, 3, 16, 17, 32, 2**31, 2**32 + 16, 2**62, 2**63 - 1)
_FLOATS = (np.nan, np.inf, -np.inf, 0.0, 3e38, 1e-45)
_TYPES = (np.float32, np.float64, np.float16, np.int32, np.int64, np.uint8)

Case = tuple[str, dict[str, Any], dict[str, Array]]


def sound_case(op: str, rng: np.random.Generator) -> Case:
    """The op with attributes and inputs that fit each other."""
    seed, tokens = int(rng.integers(1000)), int(rng.integers(0, 20))
    attributes: dict[str, Any] = {"block_size": BLOCK}
    if op in ("Linear", "PreciseLinear"):
        blocks, n = (int(count) for count in rng.integers(1, 5, 2))
        inputs = test_native_linear.make_inputs(seed, tokens, blocks, n, BLOCK)
        return op, attributes | {"K": blocks * BLOCK, "N": n}, inputs
    if op in ("SparseExperts", "Int4SparseExperts"):
        bits = 4 if op.startswith("Int4") else 8
        inputs = test_native_experts.make_inputs(seed, tokens, 4, 2, BLOCK, d=1, f=2, bits=bits)
        return op, attributes | {"num_experts_per_tok": 2}, inputs
    attributes["softmax_scale"] = 0.2
    cache_type = ("float32", "float16")[rng.integers(2)]
    if op == "LatentAttentionInt8Cache":
        cache_type, attributes["cache_block_size"] = "int8", 32
    else:
        assert op == "LatentAttention", f"no inputs for {op}"
    inputs = float_inputs(seed, tokens, tokens + int(rng.integers(0, 80)), h=2, n=5, r=4, c=32, v=6)
    return op, attributes, int8_inputs(with_cache(inputs, cache_type), BLOCK)


def damage(case: Case, rng: np.random.Generator) -> Case:
    """The case with one thing changed, so that it may not fit any more."""
    op, attributes, inputs = case
    name = str(rng.choice(list(inputs)))
    value = inputs[name]
    match rng.integers(5):
        case 0:  # another size of one dimension
            axis = rng.integers(value.ndim)
            sizes = list(value.shape)
            sizes[axis] = max(
                0, (0, 1, sizes[axis] - 1, sizes[axis] + 1, 2 * sizes[axis])[rng.integers(5)]
            )
            inputs = inputs | {name: np.resize(value, sizes)}
        case 1:  # a dimension more or less
            inputs = inputs | {name: value[None] if rng.integers(2) else value.reshape(-1)}
        case 2:
            inputs = inputs | {
                name: value.astype(_TYPES[rng.integers(len(_TYPES))], casting="unsafe")
            }
        case 3:
            changed = str(rng.choice([key for key in attributes if key != "softmax_scale"]))
            attributes = attributes | {changed: int(rng.choice(_INTEGERS))}
        case 4:  # another value somewhere
            if value.size:
                value = value.copy()
                choices: tuple[float, ...] = _FLOATS if value.dtype.kind == "f" else _INTEGERS
                wanted = choices[rng.integers(len(choices))]
                if value.dtype == np.uint8:
                    wanted = int(wanted) % 256
                value.reshape(-1)[rng.integers(value.size)] = wanted
                inputs = inputs | {name: value}
    return op, attributes, inputs


def outcome_of(case: Case, models: OneOpModels) -> str:
    """ "ran", "refused by the kernel" or "refused before"; anything else is a failure.

    Raises:
        AssertionError: the kernel's message is not one line.
    """
    op, attributes, inputs = case
    try:
        models.run(op, attributes, inputs)
    except Exception as error:
        text = str(error)
        if f"shoal::{op}" not in text and "block_size" not in text:
            return "refused before"
        assert "\n" not in text.strip(), text
        return "refused by the kernel"
    return "ran"


def main() -> int:
    """Run the cases, of every op that has a kernel, and print how many ended how."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.fuzz", description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    library = find_library(args.library)
    assert isinstance(library, KernelLibrary), library
    outcomes: Counter[str] = Counter()
    for seed in range(args.seed, args.seed + args.cases):
        rng = np.random.default_rng(seed)
        case = sound_case(library.ops[rng.integers(len(library.ops))], rng)
        for _ in range(rng.integers(0, 4)):
            case = damage(case, rng)
        folder = args.folder / "case"
        folder.mkdir()
        sys.stderr.write(f"seed {seed}: {case[0]}\n")
        outcome = outcome_of(case, OneOpModels(folder, args.library, threads=2))
        outcomes[f"{case[0]} {outcome}"] += 1
        shutil.rmtree(folder)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count} {outcome}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
