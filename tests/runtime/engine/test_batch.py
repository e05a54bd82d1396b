"""Several contexts in one step: what comes out is what they give apart, and what is refused."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tolerances import FLOAT32_LOGITS

from shoal.graphs.cache_types import CACHE_TYPES, CacheType
from shoal.graphs.errors import BundleError, InputError, RuntimeFailure
from shoal.graphs.manifest import checksum
from shoal.runtime import open_bundle
from shoal.runtime.engine.context import Context
from shoal.runtime.engine.session import Binding, Kernels
from shoal.runtime.model import Model

VOCABULARY = 1000  # of which tokens are drawn


@pytest.fixture(scope="module")
def model(int8_bundle: Path) -> Model:
    return open_bundle(int8_bundle, threads=1)


@functools.cache
def opened(bundle: Path, kernels: Kernels, cache: CacheType) -> Model:
    return open_bundle(bundle, threads=2, kernels=kernels, cache=cache)


def filled(model: Model, length: int, seed: int) -> Context:
    context = model.new_context()
    if length:
        context.step(random_tokens(length, seed), logits="none")
    return context


def random_tokens(count: int, seed: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(3, VOCABULARY, count).tolist()
    return ids


def state(context: Context) -> tuple[Any, ...]:
    """Everything that what follows depends on, to be compared."""
    rows = {name: part.tobytes() for name, part in context.layer_state.rows().items()}
    return context.position, context.tokens, rows, context.last_hidden.tobytes()


LENGTHS = st.lists(st.integers(0, 150), min_size=1, max_size=10)


@pytest.mark.parametrize("cache", CACHE_TYPES)
@pytest.mark.parametrize("kernels", ["auto", "portable"])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_int8_contexts_have_the_bits_they_have_apart(
    int8_bundle: Path, kernels: Kernels, cache: CacheType, lengths: list[int], seed: int
) -> None:
    """Rows of the cache too, so whatever comes after is the same: experts, drafts, saved files."""
    model = opened(int8_bundle, kernels, cache)
    together = [filled(model, length, seed + at) for at, length in enumerate(lengths)]
    apart = [context.fork() for context in together]
    for step in range(2):
        tokens = random_tokens(len(lengths), 1000 * seed + step)
        found = model.decode_batch(together, tokens)
        expected = [context.decode(token) for context, token in zip(apart, tokens, strict=True)]
        np.testing.assert_array_equal(found, np.stack(expected))
    assert [state(one) for one in together] == [state(one) for one in apart]


@settings(max_examples=6, deadline=None, derandomize=True)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_float_contexts_have_the_logits_they_have_apart(
    fp32_bundle: Path, lengths: list[int], seed: int
) -> None:
    model = opened(fp32_bundle, "portable", "float32")
    together = [filled(model, length, seed + at) for at, length in enumerate(lengths)]
    apart = [context.fork() for context in together]
    tokens = random_tokens(len(lengths), seed)
    found = model.decode_batch(together, tokens)
    expected = [context.decode(token) for context, token in zip(apart, tokens, strict=True)]
    np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=FLOAT32_LOGITS)


def test_a_context_goes_on_alone_before_and_after(model: Model, tmp_path: Path) -> None:
    one, other = filled(model, 20, 1), filled(model, 70, 2)
    model.drafts.start(one)
    expected = one.fork()
    for turn in range(3):
        model.decode_batch([other, one], [7 + turn, 40 + turn])
        one.decode(50 + turn)
        expected.prefill([40 + turn])
        expected.decode(50 + turn)
    one.rewind(24)
    expected.rewind(24)
    model.decode_batch([one], [9])
    expected.decode(9)
    assert state(one) == state(expected)
    drafters = [model.drafts.start(context) for context in (one, expected)]
    assert drafters[0].propose(25, 8, 2) == drafters[1].propose(25, 8, 2) != []
    one.save(tmp_path / "one.ctx")
    restored = model.load_context(tmp_path / "one.ctx")
    found = model.decode_batch([restored, one], [11, 11])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], expected.decode(11))


def test_forks_part_in_one_step(model: Model) -> None:
    context = filled(model, 30, 3)
    forks = [context.fork() for _ in range(3)]
    found = model.decode_batch([context, *forks], [5, 6, 7, 8])
    for token, fork, logits in zip((5, 6, 7, 8), (context, *forks), found, strict=True):
        alone = filled(model, 30, 3)
        np.testing.assert_array_equal(logits, alone.decode(token))
        assert state(fork) == state(alone)


def test_what_cannot_go_together_is_refused_in_one_line(model: Model, int8_bundle: Path) -> None:
    one, other = filled(model, 5, 1), filled(model, 6, 2)
    narrow = open_bundle(int8_bundle, threads=1, cache="int8").new_context()
    same_kind = open_bundle(int8_bundle, threads=1).new_context()
    before = state(one), state(other)
    cases: list[tuple[list[Context], list[int], str]] = [
        ([], [], "empty"),
        ([one, other], [3], "expected one token for each context, found 1 for 2"),
        ([one, other, one], [3, 4, 5], "contexts 0 and 2 are the same one"),
        ([one, narrow], [3, 4], "context 1 was made by another model"),
        ([same_kind, one], [3, 4], "context 0 was made by another model"),
        ([one, other], [3, 1 << 40], "outside the vocabulary"),
    ]
    for contexts, tokens, message in cases:
        with pytest.raises(InputError, match=message) as refused:
            model.decode_batch(contexts, tokens)
        assert "\n" not in str(refused.value)
    assert (state(one), state(other)) == before


def test_a_full_context_stops_all(int8_bundle: Path) -> None:
    model = open_bundle(int8_bundle, threads=1, max_context=20)
    roomy, full = filled(model, 5, 1), filled(model, 20, 2)
    before = state(roomy), state(full)
    with pytest.raises(InputError, match="21 tokens are more than the model's 20"):
        model.decode_batch([roomy, full], [3, 4])
    assert (state(roomy), state(full)) == before


def test_a_context_in_use_by_another_thread_is_refused(model: Model) -> None:
    one, other = filled(model, 5, 1), filled(model, 6, 2)
    inside, leave = threading.Event(), threading.Event()

    def occupy() -> None:
        def wait(_done: int, _total: int) -> None:
            inside.set()
            leave.wait()

        other.prefill([3], progress=wait)

    thread = threading.Thread(target=occupy)
    thread.start()
    inside.wait()
    try:
        with pytest.raises(InputError, match="another thread is using it"):
            model.decode_batch([one, other], [3, 4])
    finally:
        leave.set()
        thread.join()
    assert (one.position, other.position) == (5, 7)
    model.decode_batch([one, other], [3, 4])


def test_threads_with_contexts_of_their_own_do_not_disturb_each_other(model: Model) -> None:
    groups = [[filled(model, 9 * at + 5 * thread, at) for at in range(3)] for thread in range(2)]
    apart = [[context.fork() for context in group] for group in groups]
    found: list[list[Any]] = [[], []]

    def decode(thread: int) -> None:
        for step in range(6):
            tokens = random_tokens(3, 10 * thread + step)
            found[thread].append(model.decode_batch(groups[thread], tokens))

    threads = [threading.Thread(target=decode, args=[thread]) for thread in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for thread in range(2):
        for step, logits in enumerate(found[thread]):
            tokens = random_tokens(3, 10 * thread + step)
            expected = [one.decode(t) for one, t in zip(apart[thread], tokens, strict=True)]
            np.testing.assert_array_equal(logits, np.stack(expected))
        assert len(found[thread]) == 6


def test_a_failing_step_moves_no_context(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the last group of contexts fails, and then the module of the last drafter."""
    contexts = [filled(model, 3 + seed, seed) for seed in range(10)]
    drafter = model.drafts.start(contexts[-1])
    before = [state(context) for context in contexts]
    tokens = random_tokens(10, 5)
    runs = []

    def fail_late(binding: Binding, *, release_memory: bool = False) -> None:
        runs.append(release_memory)
        if len(runs) == 3:  # decoder and head of the first eight went well
            raise RuntimeFailure("out of memory")
        run(binding, release_memory=release_memory)

    def fail(*_arguments: object) -> None:
        raise RuntimeFailure("out of memory")

    run = Binding.run
    with monkeypatch.context() as patch:
        patch.setattr(Binding, "run", fail_late)
        with pytest.raises(RuntimeFailure):
            model.decode_batch(contexts, tokens)
    assert [context.position for context in contexts] == [3 + seed for seed in range(10)]
    with monkeypatch.context() as patch:
        patch.setattr(drafter, "observe", fail)
        with pytest.raises(RuntimeFailure):
            model.decode_batch(contexts, tokens)
    assert [state(context)[:3] for context in contexts] == [each[:3] for each in before]
    found = model.decode_batch(contexts, tokens)
    alone = filled(model, 3, 0)
    np.testing.assert_array_equal(found[0], alone.decode(tokens[0]))


def test_a_bundle_of_an_older_shoal_opens_and_says_what_it_lacks(
    int8_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(int8_bundle, tmp_path / "older"))
    path = folder / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for role in [role for role in content["graphs"] if role.startswith("batch")]:
        del content["files"][content["graphs"].pop(role)]
    content["manifest_sha256"] = checksum(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    model = open_bundle(folder, threads=1)
    context = filled(model, 4, 1)
    with pytest.raises(BundleError, match=r"no graph for several contexts \(batch\)") as refused:
        model.decode_batch([context], [5])
    assert "\n" not in str(refused.value)
    assert context.decode(5).shape == (model.manifest.model.vocab_size,)
