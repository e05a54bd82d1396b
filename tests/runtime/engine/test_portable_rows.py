"""Rows of short steps on onnxruntime's own kernels: the bits they have one at a time.

Drafts on portable kernels rest on this (docs/drafting.md). It is a property of onnxruntime and of
the processor that runs the test, swept here over block sizes, thread counts and shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.graphs.one_op import Array, OneOpModels
from tests.graphs.op_inputs import float_inputs, int8_inputs, with_cache
from tests.graphs.test_op_int8_cache import attributes_of

from shoal.graphs.cache_types import CACHE_TYPES
from shoal.graphs.ops.spec import LONGEST_SHORT_STEP, Attributes
from shoal.graphs.quantize import quantize_blocks
from shoal.runtime.drafting.row_audit import shortest_depth
from shoal.runtime.engine.session import SessionSettings

DRAFTING_BLOCKS = (16, 32, 64)
THREADS = (1, 2, 3, 4)
NEW = ("q_nope", "q_rope", "latent", "k_rope")

Inputs = dict[str, Array]
Run = Callable[[Inputs], list[Array]]


@pytest.fixture(scope="module", params=THREADS)
def threads(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


@pytest.fixture(scope="module")
def rows_models(threads: int, tmp_path_factory: pytest.TempPathFactory) -> OneOpModels:
    return OneOpModels(tmp_path_factory.mktemp(f"rows{threads}"), threads=threads)


def opened(models: OneOpModels, name: str, attributes: Attributes, inputs: Inputs) -> Run:
    """Runs one model on activations of any number of rows."""
    session = models.open(name, attributes, inputs)
    names = [node.name for node in session.get_inputs()]
    return lambda given: list(session.run(None, {key: given[key] for key in names}))


def quantized(rng: np.random.Generator, shape: tuple[int, ...], block: int) -> tuple[Array, Array]:
    return quantize_blocks(rng.standard_normal(shape, np.float32), block)


@pytest.mark.parametrize("block", DRAFTING_BLOCKS)
@pytest.mark.parametrize(("n", "k"), [(48, 64), (256, 256), (384, 768), (1000, 128), (640, 1024)])
def test_linear(rows_models: OneOpModels, block: int, n: int, k: int) -> None:
    rng = np.random.default_rng(n + k)
    codes, scales = quantized(rng, (n, k), block)
    inputs: Inputs = {
        "x": rng.standard_normal((1, LONGEST_SHORT_STEP, k), np.float32),
        "weight": codes.reshape(n, k // block, block),
        "weight_scales": scales,
    }
    run = opened(rows_models, "Linear", {"K": k, "N": n, "block_size": block}, inputs)
    alone = [run({"x": inputs["x"][:, t : t + 1]})[0] for t in range(LONGEST_SHORT_STEP)]
    for count in range(2, LONGEST_SHORT_STEP + 1):
        together = run({"x": inputs["x"][:, :count]})[0]
        assert np.array_equal(together, np.concatenate(alone[:count], axis=1)), count


@pytest.mark.parametrize("block", DRAFTING_BLOCKS)
@pytest.mark.parametrize(("d", "f", "experts", "chosen"), [(256, 128, 16, 4), (128, 192, 8, 2)])
def test_sparse_experts(
    rows_models: OneOpModels, block: int, d: int, f: int, experts: int, chosen: int
) -> None:
    rng = np.random.default_rng(d)
    gate_up, gate_up_scales = quantized(rng, (experts, 2 * f, d), block)
    down, down_scales = quantized(rng, (experts, d, f), block)
    shape = (1, LONGEST_SHORT_STEP)
    ids = [rng.permutation(experts)[:chosen] for _ in range(LONGEST_SHORT_STEP)]
    rows: Inputs = {
        "x": rng.standard_normal((*shape, d), np.float32),
        "expert_ids": np.array(ids, np.int64)[None],
        "expert_weights": rng.random((*shape, chosen), np.float32),
    }
    weights = {
        "gate_up": gate_up,
        "gate_up_scales": gate_up_scales,
        "down": down,
        "down_scales": down_scales,
    }
    attributes = {"block_size": block, "num_experts_per_tok": chosen}
    run = opened(rows_models, "SparseExperts", attributes, rows | weights)
    alone = [
        run({name: value[:, t : t + 1] for name, value in rows.items()})[0]
        for t in range(LONGEST_SHORT_STEP)
    ]
    for count in range(2, LONGEST_SHORT_STEP + 1):
        together = run({name: value[:, :count] for name, value in rows.items()})[0]
        assert np.array_equal(together, np.concatenate(alone[:count], axis=1)), count


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("past", [0, 17, 500])
def test_latent_attention_beyond_the_shortest_depth(
    rows_models: OneOpModels, threads: int, cache_type: str, past: int
) -> None:
    past += shortest_depth(SessionSettings(threads=threads, kernels="portable"))
    t = LONGEST_SHORT_STEP
    inputs = with_cache(float_inputs(5, t, past + t, h=8, n=32, r=32, c=128, v=32), cache_type)
    inputs = int8_inputs(inputs, 64)
    if cache_type == "int8":
        name, attributes = attributes_of(inputs)
    else:
        name, attributes = "LatentAttention", {"softmax_scale": 0.17, "block_size": 64}
    run = opened(rows_models, name, attributes, inputs)
    caches = [key for key in inputs if key.startswith("cache")]
    for count in range(2, t + 1):
        together, *cache = run(part(inputs, inputs, caches, 0, count, past))
        given = dict(zip(caches, cache, strict=True))
        for row in range(count):
            alone = run(part(inputs, inputs | given, caches, row, 1, past))[0]
            assert np.array_equal(alone, together[:, row : row + 1]), (count, row)


def part(
    rows: Inputs, cached: Inputs, caches: list[str], first: int, count: int, past: int
) -> Inputs:
    """The new rows first..first+count-1, with the cache as it is when they are read."""
    new = {name: rows[name][:, first : first + count] for name in NEW}
    return new | {name: cached[name][:, : past + first + count] for name in caches}
