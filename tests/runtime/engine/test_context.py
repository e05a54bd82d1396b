from __future__ import annotations

import threading

import numpy as np
import pytest
from tests.tolerances import FLOAT32_LOGITS, INT8_CHUNKING_KL

from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime import open_bundle
from shoal.runtime.engine import step as step_module
from shoal.runtime.engine.step import SCORE_BYTES, chunk_length

IDS = list(range(40, 640, 11))
ENGLISH = (
    "Once upon a time there was a fisherman who lived with his wife in a small house by the sea. "
    "Every morning he went out with his boat, and every evening he came home with what he had "
    "caught. One day the net was so heavy that he could hardly pull it in, and when he looked, "
    "there was only one fish in it, but it was made of gold, and it could speak."
)


@pytest.fixture(scope="module")
def model(fp32_bundle):
    return open_bundle(fp32_bundle, threads=1)


@pytest.fixture(scope="module")
def int8_model(int8_bundle):
    return open_bundle(int8_bundle, threads=1)


def assert_logits_equal(found, expected):
    error = np.abs(found - expected)
    assert error.max() <= FLOAT32_LOGITS, f"max {error.max():.2e} at {np.argmax(error)}"


def test_token_by_token_equals_the_one_shot_forward(model):
    context = model.new_context()
    steps = np.stack([context.decode(token) for token in IDS])
    assert_logits_equal(steps, model.logits(IDS))


def test_int8_token_by_token_equals_the_one_shot_forward_but_for_rounding(int8_model):
    ids = int8_model.encode(ENGLISH)
    context = int8_model.new_context()
    steps = log_probabilities(np.stack([context.decode(token) for token in ids]))
    whole = log_probabilities(int8_model.logits(ids))
    divergence = (np.exp(whole) * (whole - steps)).sum(axis=1).mean()
    assert divergence <= INT8_CHUNKING_KL, f"mean KL divergence {divergence:.2e}"


def log_probabilities(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 54])
def test_chunks_equal_the_one_shot_forward(model, monkeypatch, chunk):
    expected = model.new_context().step(IDS, logits="all", hidden=True, routing=True)
    monkeypatch.setattr(step_module, "LARGEST_CHUNK", chunk)
    calls = []
    context = model.new_context()
    step = context.step(
        IDS, logits="all", hidden=True, routing=True, progress=lambda *call: calls.append(call)
    )
    assert_logits_equal(step.logits, expected.logits)
    assert_logits_equal(step.hidden, expected.hidden)
    np.testing.assert_array_equal(step.routing.expert_ids, expected.routing.expert_ids)
    np.testing.assert_array_equal(context.last_hidden, step.hidden[-1])
    assert calls[-1] == (len(IDS), len(IDS))
    assert len(calls) == -(-len(IDS) // chunk)
    assert_logits_equal(model.new_context().prefill(IDS), expected.logits[-1])


def test_chunks_keep_the_scores_small_and_never_stop():
    for heads in (1, 16, 128):
        for position in (0, 1000, 100_000):
            count = chunk_length(position, 10_000, 4 * heads)
            assert 16 <= count <= 512
            assert count == 16 or 4 * heads * count * (position + count) <= SCORE_BYTES
    assert chunk_length(100_000, 3, 4 * 128) == 3
    assert chunk_length(100_000, 10_000, 0) == 512, "native kernels keep no scores"


def test_the_cache_holds_the_latent_and_the_rope_key_of_each_token_and_nothing_else(model):
    info = model.manifest.model
    context = model.new_context()
    context.reserve(500)
    width = info.kv_lora_rank + info.qk_rope_head_dim
    assert context.layer_state.bytes_per_token == width * 4 * info.num_hidden_layers
    assert context.layer_state.nbytes == 500 * context.layer_state.bytes_per_token
    context.prefill(IDS)
    assert context.layer_state.nbytes == 500 * context.layer_state.bytes_per_token
    assert context.layer_state.rows()["cache.0"].shape == (len(IDS), width)


def test_growing_the_cache_does_not_change_results(model):
    roomy, growing = model.new_context(), model.new_context()
    roomy.reserve(400)
    capacities = set()
    for start in range(0, 300, 30):
        tokens = list(range(start + 5, start + 35))
        np.testing.assert_array_equal(growing.prefill(tokens), roomy.prefill(tokens))
        capacities.add(growing.layer_state.capacity)
    assert len(capacities) > 2


def test_rewinding_then_reading_again_gives_the_same_logits(model):
    context = model.new_context()
    context.prefill(IDS[:30])
    expected = [context.decode(token) for token in IDS[30:35]]
    context.rewind(10)
    assert context.tokens == tuple(IDS[:10])
    context.prefill([9, 9, 9])
    context.rewind(10)
    context.prefill(IDS[10:30])
    found = [context.decode(token) for token in IDS[30:35]]
    assert_logits_equal(np.stack(found), np.stack(expected))
    context.rewind(30)
    again = [context.decode(token) for token in IDS[30:35]]
    np.testing.assert_array_equal(np.stack(again), np.stack(found))


def test_switching_computes_only_what_follows_the_common_prefix(model):
    context = model.new_context()
    context.prefill(IDS)
    read = []
    logits = context.switch_to([*IDS[:20], 7, 8], progress=lambda *call: read.append(call))
    assert read == [(2, 2)]
    assert context.tokens == (*IDS[:20], 7, 8)
    assert_logits_equal(logits, model.logits([*IDS[:20], 7, 8])[-1])
    context.switch_to(IDS[:5], progress=lambda *call: read.append(call))
    assert read[-1] == (1, 1)
    assert context.position == 5


def test_results_are_the_callers_to_keep(model):
    context = model.new_context()
    first = context.prefill(IDS[:5])
    kept = first.copy()
    context.decode(3)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], "the prompt is empty"),
        ([4096], "token id 4096 is outside the vocabulary of 4096; use ids of"),
        ([-1], "token id -1 is outside the vocabulary"),
        ([2**70], "outside the vocabulary"),
        ([1.0], "must be integers, found float"),
        ([True], "must be integers, found bool"),
        (["1"], "must be integers, found str"),
        ([None], "must be integers, found NoneType"),
        ("text", "found str; encode text first"),
        (5, "found int; encode text first"),
        (np.zeros((1, 2), np.int64), "must be one-dimensional"),
        (np.zeros(2, np.float32), "must be integers, found float32"),
        (np.zeros(2, bool), "must be integers, found bool"),
    ],
)
def test_what_is_no_token_ids_is_refused(model, ids, expected):
    context = model.new_context()
    for method in (context.prefill, context.switch_to, model.logits, model.generate):
        with pytest.raises(InputError, match=expected):
            method(ids)
    assert context.position == 0


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64])
def test_integer_arrays_and_tuples_are_token_ids(model, dtype):
    expected = model.logits(IDS[:5])
    np.testing.assert_array_equal(model.logits(np.array(IDS[:5], dtype)), expected)
    np.testing.assert_array_equal(model.logits(tuple(IDS[:5])), expected)


def test_more_than_the_model_can_read_is_refused_before_computing(model):
    limit = model.manifest.model.max_position_embeddings
    context = model.new_context()
    context.prefill(IDS[:5])
    before = context.layer_state.nbytes
    message = f"{limit + 1} tokens are more than the model's {limit}"
    with pytest.raises(InputError, match=message):
        context.prefill([5] * (limit - 4))
    with pytest.raises(InputError, match=message):
        context.switch_to([5] * (limit + 1))
    assert (context.position, context.layer_state.nbytes) == (5, before)


@pytest.mark.slow
def test_a_context_can_be_filled_to_the_last_token(model):
    limit = model.manifest.model.max_position_embeddings
    context = model.new_context()
    context.prefill([5 + n % 4000 for n in range(limit - 1)])
    context.decode(5)
    assert context.position == limit == context.layer_state.capacity
    with pytest.raises(InputError, match="more than the model's"):
        context.decode(5)


@pytest.mark.parametrize("error", [RuntimeFailure("no"), KeyboardInterrupt()])
def test_a_step_that_fails_half_way_leaves_the_context_as_it_was(model, monkeypatch, error):
    monkeypatch.setattr(step_module, "LARGEST_CHUNK", 16)
    context = model.new_context()
    context.prefill(IDS[:5])
    hidden = context.last_hidden.copy()

    def fail_after_two(done, total):
        if done == 32:
            raise error

    with pytest.raises(type(error)):
        context.prefill(IDS[5:], progress=fail_after_two)
    assert context.tokens == tuple(IDS[:5])
    np.testing.assert_array_equal(context.last_hidden, hidden)
    assert_logits_equal(context.prefill(IDS[5:]), model.logits(IDS)[-1])


def test_routing_says_what_was_chosen_for_each_layer_and_token(model):
    info = model.manifest.model
    routing = model.routing(IDS)
    assert routing.layers == info.moe_layers
    shape = (len(info.moe_layers), len(IDS), info.num_experts_per_tok)
    assert routing.expert_ids.shape == routing.expert_weights.shape == shape
    assert ((routing.expert_ids >= 0) & (routing.expert_ids < info.n_routed_experts)).all()
    assert all(len(set(chosen)) == len(chosen) for chosen in routing.expert_ids.reshape(-1, 4))
    # The normalised weights of this model are scaled by routed_scaling_factor.
    total = routing.expert_weights.sum(axis=2)
    np.testing.assert_allclose(total, model.config["routed_scaling_factor"], rtol=1e-5)
    context = model.new_context()
    one_by_one = [context.step([token], routing=True).routing.expert_ids for token in IDS]
    np.testing.assert_array_equal(np.concatenate(one_by_one, axis=1), routing.expert_ids)


def test_contexts_of_one_model_work_in_several_threads_at_once(model):
    prompts = [[5 + seed + 3 * n for n in range(40)] for seed in range(4)]
    expected = [model.logits(prompt) for prompt in prompts]
    found = [None] * len(prompts)

    def read(index):
        context = model.new_context()
        found[index] = np.stack([context.decode(token) for token in prompts[index]])

    threads = [threading.Thread(target=read, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        assert_logits_equal(one, other)


def test_peeking_reads_nothing_until_tokens_are_adopted(model):
    context = model.new_context()
    context.prefill(IDS[:10])
    logits = context.peek(IDS[10:14])
    assert (context.tokens, context.peeked.tokens) == (tuple(IDS[:10]), IDS[10:14])
    context.adopt(1)
    context.adopt(2)
    assert (context.tokens, context.peeked.tokens) == (tuple(IDS[:13]), [IDS[13]])
    assert_logits_equal(logits, model.logits(IDS[:14])[10:])
    with pytest.raises(InputError, match="at most the 1 tokens it last peeked at, found 2"):
        context.adopt(2)
    assert_logits_equal(context.prefill(IDS[13:20]), model.logits(IDS[:20])[-1])


@pytest.mark.parametrize(
    "action",
    [
        lambda context: context.decode(3),
        lambda context: context.rewind(4),
        lambda context: context.reserve(300),
        lambda context: context.switch_to([1, 2]),
    ],
)
def test_what_was_peeked_at_is_gone_once_something_else_is_done(model, action):
    context = model.new_context()
    context.prefill(IDS[:10])
    context.peek(IDS[10:14])
    action(context)
    assert context.peeked.tokens == []
    with pytest.raises(InputError, match="peek again"):
        context.adopt(1)


def test_a_fork_goes_its_own_way(model):
    context = model.new_context()
    context.prefill(IDS[:20])
    fork = context.fork()
    other = [7, 8, 9]
    fork.rewind(15)
    found = [fork.prefill(other), context.prefill(IDS[20:25])]
    expected = [model.logits([*IDS[:15], *other])[-1], model.logits(IDS[:25])[-1]]
    assert_logits_equal(np.stack(found), np.stack(expected))
    assert fork.tokens == (*IDS[:15], *other)


def test_a_second_thread_in_one_context_is_refused(model):
    context = model.new_context()
    errors = []

    def intrude(done, total):
        def decode():
            with pytest.raises(InputError, match="another thread is using it"):
                context.decode(3)
            errors.append("refused")

        thread = threading.Thread(target=decode)
        thread.start()
        thread.join()

    logits = context.prefill(IDS, progress=intrude)
    assert errors == ["refused"]
    assert_logits_equal(logits, model.logits(IDS)[-1])
