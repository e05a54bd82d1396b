"""What an observer of a context is shown: the tokens that the context holds, exactly those."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime import open_bundle
from shoal.runtime.drafting.drafts import DRAFTER
from shoal.runtime.engine import step as step_module
from shoal.runtime.engine.arrays import Arrays, UnexpectedArrays, require_arrays, row_count
from shoal.runtime.engine.context import Context
from shoal.runtime.engine.context_file import read_context_file
from shoal.runtime.engine.step import Chunk
from shoal.runtime.model import Model

IDS = list(range(40, 640, 11))
NAME = "recorder"


class Recorder:
    """Keeps everything it is shown, and complains if that is not what follows."""

    def __init__(self, *, wants_routing: bool = True) -> None:
        self.wants_routing = wants_routing
        self.tokens: list[int] = []
        self.hidden: list[np.ndarray[Any, Any]] = []  # [D]
        self.expert_ids: list[np.ndarray[Any, Any]] = []  # [M,K]
        self.breaks_at: int | None = None  # a token

    @property
    def nbytes(self) -> int:
        return 8 * len(self.tokens)

    def observe(self, chunk: Chunk) -> None:
        assert chunk.first == len(self.tokens)
        assert len(chunk.tokens) == len(chunk.hidden_TD) > 0
        assert self.breaks_at is None or self.breaks_at not in chunk.tokens, "broken"
        self.tokens += chunk.tokens
        self.hidden += list(chunk.hidden_TD.copy())
        if self.wants_routing:
            assert chunk.routing is not None
            self.expert_ids += list(chunk.routing.expert_ids.swapaxes(0, 1).copy())

    def rewind(self, length: int) -> None:
        for kept in (self.tokens, self.hidden, self.expert_ids):
            del kept[length:]

    def fork(self) -> Recorder:
        other = Recorder(wants_routing=self.wants_routing)
        other.tokens, other.hidden = list(self.tokens), list(self.hidden)
        other.expert_ids = list(self.expert_ids)
        return other

    def state(self) -> Arrays:
        return {"tokens": np.array(self.tokens, np.int64), "hidden": np.stack(self.hidden)}

    def restore(self, state: Arrays) -> None:
        count, width = row_count(state, "tokens"), state["hidden"].shape[-1]
        require_arrays(
            state, {"tokens": ("int64", (count,)), "hidden": ("float32", (count, width))}
        )
        self.tokens, self.hidden = state["tokens"].tolist(), list(state["hidden"])


@pytest.fixture(scope="module")
def model(fp32_bundle: Path) -> Model:
    return open_bundle(fp32_bundle, threads=1)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "LARGEST_CHUNK", 16)


def observed(model: Model, *, wants_routing: bool = True) -> tuple[Context, Recorder]:
    context, recorder = model.new_context(), Recorder(wants_routing=wants_routing)
    context.attach(NAME, recorder)
    return context, recorder


def recorder_of(context: Context) -> Recorder:
    recorder = context.observer(NAME)
    assert isinstance(recorder, Recorder)
    return recorder


def assert_saw_all(model: Model, context: Context) -> None:
    """The recorder of a context has seen what this context holds, and what was routed for it."""
    recorder = recorder_of(context)
    assert tuple(recorder.tokens) == context.tokens
    if not context.tokens:
        return
    np.testing.assert_array_equal(recorder.hidden[-1], context.last_hidden)
    expected = model.routing(context.tokens).expert_ids.swapaxes(0, 1)
    np.testing.assert_array_equal(np.stack(recorder.expert_ids), expected)


ACTIONS: list[Callable[[Model, Context], object]] = [
    lambda _, context: context.prefill(IDS[:20]),
    lambda _, context: context.decode(7),
    lambda _, context: context.step([8, 9], logits="all", hidden=True, routing=True),
    lambda _, context: context.switch_to([*context.tokens[: context.position // 2], 3, 4]),
    lambda _, context: (context.peek([5, 6, 7]), context.adopt(1), context.adopt(1)),
    lambda _, context: context.peek([5, 6, 7]),
    lambda _, context: context.reserve(context.position + 100),
    lambda model, context: model.decode_batch([context, model.new_context()], [11, 12]),
    lambda model, context: model.decode_batch([context], [13]),
    lambda model, context: list(
        model.generate([*context.tokens, 3], max_new_tokens=3, context=context)
    ),
]


@pytest.mark.usefixtures("small_chunks")
@settings(max_examples=20, deadline=None, derandomize=True)
@given(chosen=st.lists(st.sampled_from(range(len(ACTIONS))), min_size=1, max_size=6))
def test_whatever_is_done_an_observer_sees_the_tokens_of_its_context(
    model: Model, chosen: list[int]
) -> None:
    context, recorder = observed(model)
    for action in chosen:
        ACTIONS[action](model, context)
        assert tuple(recorder.tokens) == context.tokens
    assert_saw_all(model, context)


@pytest.mark.usefixtures("small_chunks")
def test_a_fork_has_an_observer_of_its_own(model: Model) -> None:
    context, recorder = observed(model)
    context.prefill(IDS[:20])
    fork = context.fork()
    fork.rewind(10)
    fork.prefill([3, 4, 5])
    context.decode(9)
    assert recorder_of(fork) is not recorder
    for each in (context, fork):
        assert_saw_all(model, each)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("error", [RuntimeFailure("no"), KeyboardInterrupt()])
def test_a_prefill_that_fails_in_the_middle_is_not_seen(model: Model, error: BaseException) -> None:
    context, recorder = observed(model)
    context.prefill(IDS[:5])

    def fail_after_two(done: int, _total: int) -> None:
        if done == 32:
            assert len(recorder.tokens) == 5 + 32
            raise error

    with pytest.raises(type(error)):
        context.prefill(IDS[5:], progress=fail_after_two)
    assert_saw_all(model, context)
    context.prefill(IDS[5:30])
    assert_saw_all(model, context)


@pytest.mark.usefixtures("small_chunks")
def test_an_observer_that_fails_fails_the_step_for_all(model: Model) -> None:
    context, first = observed(model)
    last = Recorder(wants_routing=False)
    context.attach("last", last)
    context.prefill(IDS[:5])
    last.breaks_at = IDS[30]
    for step in (
        lambda: context.prefill(IDS[5:40]),
        lambda: (context.peek([IDS[30]]), context.adopt(1)),
        lambda: model.decode_batch([context, model.new_context()], [IDS[30], 5]),
    ):
        with pytest.raises(AssertionError, match="broken"):
            step()
        assert context.tokens == tuple(first.tokens) == tuple(last.tokens) == tuple(IDS[:5])
    last.breaks_at = None
    context.prefill(IDS[5:40])
    assert tuple(last.tokens) == context.tokens
    assert_saw_all(model, context)


def test_an_adoption_that_failed_can_be_repeated(model: Model) -> None:
    context, recorder = observed(model)
    context.prefill(IDS[:5])
    context.peek([8, 9])
    recorder.breaks_at = 8
    with pytest.raises(AssertionError, match="broken"):
        context.adopt(1)
    recorder.breaks_at = None
    context.adopt(2)
    assert_saw_all(model, context)


def test_contexts_of_a_batch_are_seen_each_by_its_own_observer(model: Model) -> None:
    contexts = [observed(model)[0] for _ in range(9)]  # one more than a graph takes
    unseen = model.new_context()
    for at, context in enumerate(contexts):
        context.prefill(IDS[at : 2 * at + 1])
    for turn in range(2):
        model.decode_batch([*contexts, unseen], list(range(20 + turn, 30 + turn)))
    for context in contexts:
        assert_saw_all(model, context)


@pytest.mark.usefixtures("small_chunks")
def test_what_is_routed_is_known_where_it_was_asked_for_and_nowhere_else(model: Model) -> None:
    context, recorder = observed(model, wants_routing=False)
    step = context.step(IDS[:20], routing=True)
    assert step.routing is not None
    context.attach("second", Recorder(wants_routing=True))
    context.rewind(0)
    assert context.step(IDS[:20]).routing is None
    assert recorder.expert_ids == []
    second = context.observer("second")
    assert isinstance(second, Recorder)
    found = np.stack(second.expert_ids).swapaxes(0, 1)
    np.testing.assert_array_equal(found, step.routing.expert_ids)


def test_an_observer_that_comes_later_sees_what_is_read_from_then_on(model: Model) -> None:
    context = model.new_context()
    context.prefill(IDS[:4])
    context.peek([8, 9])
    recorder = Recorder()
    recorder.tokens, recorder.hidden = list(context.tokens), [context.last_hidden] * 4
    recorder.expert_ids = list(model.routing(IDS[:4]).expert_ids.swapaxes(0, 1))
    context.attach(NAME, recorder)
    with pytest.raises(InputError, match="peek again"):
        context.adopt(1)
    context.decode(8)
    assert_saw_all(model, context)


def test_what_observers_keep_counts_as_memory_of_the_context(model: Model) -> None:
    context, _ = observed(model)
    context.prefill(IDS[:20])
    assert context.nbytes == context.layer_state.nbytes + 8 * 20


def test_a_saved_context_brings_back_what_its_observers_saved(model: Model, tmp_path: Path) -> None:
    context, recorder = observed(model)
    drafter = model.drafts.start(context)
    context.prefill(IDS[:20])
    drafter.propose(20, 7, 1)
    context.save(tmp_path / "a.ctx")
    file = read_context_file(tmp_path / "a.ctx", bundle=model.bundle_id, cache_type="float32")
    restored, again = observed(model)
    with pytest.raises(UnexpectedArrays):  # nobody for the state of the drafter
        restored.restore(file.arrays)
    restored, again = observed(model)
    model.drafts.start(restored)
    restored.restore(file.arrays)
    assert tuple(again.tokens) == restored.tokens == context.tokens
    np.testing.assert_array_equal(again.hidden, recorder.hidden)
    again.expert_ids = list(recorder.expert_ids)
    found, expected = (one.decode(9) for one in (restored, context))
    np.testing.assert_array_equal(found, expected)
    assert_saw_all(model, restored)


def test_a_file_is_laid_out_as_it_always_was(model: Model, tmp_path: Path) -> None:
    """Files of earlier versions must open, and those that follow must open there."""
    context = model.new_context()
    drafter = model.drafts.start(context)
    context.prefill(IDS[:20])
    drafter.propose(20, 7, 1)
    context.save(tmp_path / "a.ctx", {"title": "x"})
    content = (tmp_path / "a.ctx").read_bytes()
    header = json.loads(content[16 : 16 + int.from_bytes(content[8:16], "little")])
    info = model.manifest.model
    row = info.kv_lora_rank + info.qk_rope_head_dim
    assert list(header) == ["format_version", "bundle", "cache", "arrays", "note"]
    assert [(each["name"], each["dtype"], each["shape"]) for each in header["arrays"]] == [
        ("tokens", "int64", [20]),
        ("last_hidden", "float32", [info.hidden_size]),
        *((f"cache.{layer}", "float32", [20, row]) for layer in range(info.num_hidden_layers)),
        # A row needs the hidden state of the token before it, and the last one is a draft's.
        ("mtp.rows", "int64", [20, 2]),
        ("mtp.cache.0", "float32", [20, row]),
        ("mtp.waiting", "int64", [0, 2]),
        ("mtp.waiting_hidden", "float32", [0, info.hidden_size]),
        ("mtp.recent", "int64", [1]),
        ("mtp.recent_hidden", "float32", [20, info.hidden_size]),
    ]
    assert model.load_context(tmp_path / "a.ctx").observer(DRAFTER) is not None
