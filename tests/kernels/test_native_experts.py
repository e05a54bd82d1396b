"""The SparseExperts kernel against NumPy and the portable body, on every instruction set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graphs.one_op import Array, OneOpModels, assert_near
from tests.graphs.op_inputs import choose, grid, tie_bound, with_no_expert
from tests.kernels.isas import BODIES_ROUND_ALIKE
from tests.tolerances import FLOAT32_SUMS

from shoal.graphs.ops.sparse_experts import int4_sparse_experts, sparse_experts
from shoal.graphs.quantize import quantize_blocks, quantize_nibbles, unpack_nibbles
from shoal.graphs.recipes import BLOCK_SIZES
from shoal.runtime.kernels.library import KernelLibrary

Inputs = dict[str, Array]


def make_inputs(
    seed: int,
    tokens: int,
    experts: int,
    chosen: int,
    block_size: int,
    *,
    d: int = 2,
    f: int = 3,
    bits: int = 8,
) -> Inputs:
    """Random inputs; hidden size and expert width are d and f blocks."""
    rng = np.random.default_rng(seed)
    d, f = d * block_size, f * block_size
    quantize = {8: quantize_blocks, 4: quantize_nibbles}[bits]
    gate_up = rng.standard_normal((experts, 2 * f, d), np.float32) * np.float32(1 / d)
    inputs: Inputs = {"x": grid(rng, (tokens, d), block_size)}
    inputs |= choose(rng, (tokens,), experts, chosen)
    inputs["gate_up"], inputs["gate_up_scales"] = quantize(gate_up, block_size)
    down = rng.standard_normal((experts, d, f), np.float32)
    inputs["down"], inputs["down_scales"] = quantize(down, block_size)
    return inputs


def widen(inputs: Inputs) -> Inputs:
    """The int8 weights that weights of 4 bits stand for."""
    return inputs | {name: unpack_nibbles(inputs[name]) for name in ("gate_up", "down")}


def run(models: OneOpModels, inputs: Inputs) -> Array:
    """y, by the op for the weights that are given."""
    hidden, packed = inputs["x"].shape[-1], inputs["gate_up"].shape[-1]
    attributes = {
        "num_experts_per_tok": inputs["expert_ids"].shape[-1],
        "block_size": hidden // inputs["gate_up_scales"].shape[-1],
    }
    op = "SparseExperts" if packed == hidden else "Int4SparseExperts"
    (y,) = models.run(op, attributes, inputs)
    return y


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    tokens=st.one_of(st.integers(1, 5), st.integers(6, 60)),
    experts=st.integers(1, 9),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_forms_agree(
    models: OneOpModels,
    threaded_models: OneOpModels,
    portable_models: OneOpModels,
    block_size: int,
    tokens: int,
    experts: int,
    data: st.DataObject,
    seed: int,
) -> None:
    chosen = data.draw(st.integers(1, experts))
    inputs = make_inputs(seed, tokens, experts, chosen, block_size)
    found = run(models, inputs)
    assert np.array_equal(run(threaded_models, inputs), found)
    bound = tie_bound(**inputs)
    assert_near(found, sparse_experts(**inputs), FLOAT32_SUMS, bound)
    if BODIES_ROUND_ALIKE:
        assert_near(found, run(portable_models, inputs), FLOAT32_SUMS, 2 * bound)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("tokens", [1, 6, 50])
def test_the_id_after_the_last_is_no_expert(
    models: OneOpModels, portable_models: OneOpModels, tokens: int, share: float
) -> None:
    inputs = make_inputs(5, tokens, experts=6, chosen=3, block_size=32)
    inputs |= with_no_expert(np.random.default_rng(6), inputs, share)
    found, bound = run(models, inputs), tie_bound(**inputs)
    assert_near(found, sparse_experts(**inputs), FLOAT32_SUMS, bound)
    if BODIES_ROUND_ALIKE:
        assert_near(found, run(portable_models, inputs), FLOAT32_SUMS, 2 * bound)


def test_a_token_does_not_depend_on_the_tokens_beside_it(models: OneOpModels) -> None:
    inputs = make_inputs(1, tokens=150, experts=5, chosen=3, block_size=32, d=3, f=5)
    together = run(models, inputs)
    for first, count in ((0, 1), (3, 2), (60, 8), (30, 40)):
        names = ("x", "expert_ids", "expert_weights")
        part = {name: inputs[name][first : first + count] for name in names}
        assert np.array_equal(run(models, inputs | part), together[first : first + count])


def test_no_token_gives_no_output(models: OneOpModels) -> None:
    inputs = make_inputs(2, tokens=0, experts=4, chosen=2, block_size=16)
    assert run(models, inputs).shape == (0, 32)


def test_all_tokens_on_one_expert(models: OneOpModels) -> None:
    inputs = make_inputs(3, tokens=140, experts=3, chosen=1, block_size=16)
    inputs["expert_ids"][:] = 2
    assert_near(run(models, inputs), sparse_experts(**inputs), FLOAT32_SUMS, tie_bound(**inputs))


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("tokens", [1, 5, 150])
def test_4_bits_give_the_very_results_of_the_int8_weights_they_stand_for(
    models: OneOpModels, portable_models: OneOpModels, block_size: int, tokens: int
) -> None:
    packed = make_inputs(tokens, tokens, 5, 3, block_size, bits=4)
    wide = widen(packed)
    for forms in (models, portable_models):
        found = run(forms, packed)
        assert np.array_equal(found, run(forms, wide))
        if forms is models:  # bodies need not round activations where there is no dot product
            assert_near(found, int4_sparse_experts(**packed), FLOAT32_SUMS, tie_bound(**wide))


@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_an_expert_that_does_not_exist_is_refused(models: OneOpModels, wrong: int) -> None:
    inputs = make_inputs(4, tokens=3, experts=4, chosen=2, block_size=16)
    inputs["expert_ids"][1, 1] = wrong
    with pytest.raises(Exception, match=r"expert_ids: expected 0\.\.4, found"):
        run(models, inputs)


def test_experts_that_nobody_chose_are_not_read(library: KernelLibrary, tmp_path: Path) -> None:
    if not Path("/proc/self/smaps").exists():
        pytest.skip("this system does not say which pages of a file are in memory")
    inputs = make_inputs(5, tokens=1, experts=32, chosen=2, block_size=256, d=2, f=2)
    models = OneOpModels(tmp_path, library.path)
    attributes = {"num_experts_per_tok": 2, "block_size": 256}
    session = models.open("SparseExperts", attributes, inputs)
    fed = {name: inputs[name] for name in ("x", "expert_ids", "expert_weights")}
    before = mapped_bytes(tmp_path)
    session.run(None, fed)
    total_bytes = inputs["gate_up"].nbytes + inputs["down"].nbytes
    read_bytes = mapped_bytes(tmp_path) - before
    # The system may map up to 2 MiB around a page that is touched, here in two weights.
    assert 2 * total_bytes / 32 <= read_bytes <= total_bytes / 2


def mapped_bytes(folder: Path) -> int:
    """Bytes of files in ``folder`` that are in this process's memory."""
    total, is_inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if not line.split(maxsplit=1)[0].endswith(":"):
            is_inside = str(folder) in line
        elif is_inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total
