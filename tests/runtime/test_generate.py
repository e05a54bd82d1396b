from __future__ import annotations

import itertools

import numpy as np
import pytest
from tests.tolerances import FLOAT32_LOGITS

from shoal.graphs.errors import InputError
from shoal.runtime import open_bundle


@pytest.fixture(scope="module")
def model(fp32_bundle):
    return open_bundle(fp32_bundle, threads=1)


@pytest.fixture(scope="module")
def prompt(model):
    return model.encode("Once upon a time, there was")


def test_greedy_takes_the_best_token_each_time(model, prompt):
    ids = list(prompt)
    for _ in range(12):
        ids.append(int(np.argmax(model.logits(ids)[-1])))
    generation = model.generate(prompt, max_new_tokens=12, stop_tokens=())
    assert list(generation) == ids[len(prompt) :] == generation.tokens
    assert (generation.finish_reason, generation.prompt_tokens) == ("length", len(prompt))


def test_a_seed_repeats_the_result_and_another_changes_it(model, prompt):
    def tokens(seed):
        options = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "min_p": 0.01}
        return list(model.generate(prompt, max_new_tokens=20, seed=seed, **options))

    assert tokens(1) == tokens(1) != tokens(2)


def test_tokens_come_as_they_are_decided(model, prompt):
    context = model.new_context()
    generation = model.generate(prompt, context=context)
    assert context.position == 0, "nothing runs before the first token is asked for"
    next(generation)
    assert context.position == len(prompt)
    list(itertools.islice(generation, 3))
    assert context.position == len(prompt) + 3


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(model, prompt):
    free = list(model.generate(prompt, max_new_tokens=20, stop_tokens=()))
    stop = free[7]
    generation = model.generate(prompt, max_new_tokens=20, stop_tokens=[stop])
    assert list(generation) == free[: free.index(stop)]
    assert (generation.finish_reason, generation.stop_token) == ("stop_token", stop)
    assert list(generation) == []


def test_the_models_own_end_tokens_stop_by_default(model, prompt):
    eos = model.manifest.model.eos_token_ids
    assert model.generate(prompt)._options.stop_tokens == frozenset(eos)


def test_pieces_are_the_text_of_the_tokens(model, prompt):
    generation = model.generate(prompt, max_new_tokens=30)
    text = "".join(generation.pieces())
    assert text == model.decode(generation.tokens)
    assert len(generation.tokens) == 30


def test_a_stop_string_ends_the_answer_before_it(model, prompt):
    text = "".join(model.generate(prompt, max_new_tokens=30).pieces())
    stop = text[20:26]
    generation = model.generate(prompt, max_new_tokens=30, stop=["never this", stop])
    pieces = list(generation.pieces())
    assert "".join(pieces) == text[: text.index(stop)]
    assert generation.finish_reason == "stop_string"
    assert len(generation.tokens) < 30


def test_a_special_token_as_a_stop_string_stands_for_its_id(model, prompt):
    generation = model.generate(prompt, stop=["<|user|>"], stop_tokens=())
    assert generation._options.stop_tokens == {model.encode("<|user|>")[-1]}


def test_a_context_keeps_what_it_holds_of_the_next_prompt(model, prompt):
    context = model.new_context()
    first = list(model.generate(prompt, max_new_tokens=10, context=context, stop_tokens=()))
    following = [*prompt, *first, 11, 12]
    generation = model.generate(following, max_new_tokens=10, context=context, stop_tokens=())
    assert list(generation) == list(model.generate(following, max_new_tokens=10, stop_tokens=()))
    # All but the last token of the answer, which was never read.
    assert generation.reused_tokens == len(prompt) + 9


def test_a_context_used_by_somebody_else_meanwhile_does_not_change_the_answer(model, prompt):
    expected = list(model.generate(prompt, max_new_tokens=8, stop_tokens=()))
    context = model.new_context()
    generation = model.generate(prompt, max_new_tokens=8, stop_tokens=(), context=context)
    found = list(itertools.islice(generation, 4))
    context.rewind(2)
    assert found + list(generation) == expected


@pytest.mark.slow
def test_generation_ends_when_the_context_is_full(model):
    limit = model.manifest.model.max_position_embeddings
    prompt = [5 + n % 4000 for n in range(limit - 3)]
    generation = model.generate(prompt, stop_tokens=())
    assert len(list(generation)) == 4
    assert generation.finish_reason == "context_full"


def test_no_new_tokens_are_none(model, prompt):
    generation = model.generate(prompt, max_new_tokens=0)
    assert (list(generation), generation.finish_reason) == ([], "length")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"seed": -1}, "seed"),
        ({"stop": [""]}, "stop must be"),
        ({"stop_tokens": [4096]}, "token id 4096"),
    ],
)
def test_options_out_of_range_are_refused_at_once(model, prompt, options, expected):
    with pytest.raises(InputError, match=expected):
        model.generate(prompt, **options)


def test_a_prompt_longer_than_the_model_can_read_is_refused_at_once(model):
    limit = model.manifest.model.max_position_embeddings
    with pytest.raises(InputError, match=f"{limit + 1} tokens are more than the model's {limit}"):
        model.generate([5] * (limit + 1))


def test_greedy_answers_with_penalties_are_those_of_the_definition(model, prompt):
    bias, ids = {"65": 2.0, 66: -1.0}, list(prompt)
    for _ in range(16):
        logits = model.logits(ids)[-1].astype(np.float32)
        logits[65] += np.float32(2.0)
        logits[66] -= np.float32(1.0)
        seen = np.unique(ids)
        logits[seen] = np.where(
            logits[seen] < 0, logits[seen] * np.float32(1.25), logits[seen] / np.float32(1.25)
        )
        counts = np.bincount(ids[len(prompt) :], minlength=len(logits)).astype(np.float32)
        logits -= np.float32(0.5) * counts + np.float32(0.25) * (counts > 0)
        ids.append(int(np.argmax(logits)))
    options = {"presence_penalty": 0.25, "frequency_penalty": 0.5, "repetition_penalty": 1.25}
    found = model.generate(prompt, max_new_tokens=16, stop_tokens=(), logit_bias=bias, **options)
    assert list(found) == ids[len(prompt) :]
    assert list(found) != list(model.generate(prompt, max_new_tokens=16, stop_tokens=()))


def test_only_allowed_tokens_come(model, prompt):
    vocab_size = model.manifest.model.vocab_size
    even = np.arange(vocab_size) % 2 == 0
    options = {"max_new_tokens": 20, "temperature": 1.0, "seed": 5, "stop_tokens": ()}
    assert all(token % 2 == 0 for token in model.generate(prompt, allowed=even, **options))
    asked = []

    def alternate(tokens):
        asked.append(list(tokens))
        return even if len(tokens) % 2 == 0 else ~even

    answer = list(model.generate(prompt, allowed=alternate, **options))
    assert [token % 2 for token in answer] == [0, 1] * 10
    assert asked == [answer[:length] for length in range(20)]


@pytest.mark.parametrize("drafts", [0, 2])
def test_log_probabilities_are_the_models_own_whatever_decides(model, prompt, drafts):
    generation = model.generate(
        prompt,
        max_new_tokens=12,
        temperature=1.3,
        seed=3,
        top_k=40,
        frequency_penalty=1.0,
        logit_bias={70: 5.0},
        logprobs=3,
        draft=drafts,
        stop_tokens=(),
    )
    tokens = list(generation)
    assert [found.token for found in generation.logprobs] == tokens
    rows = model.logits([*prompt, *tokens])[len(prompt) - 1 : -1].astype(np.float64)
    for found, row in zip(generation.logprobs, rows, strict=True):
        expected = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        np.testing.assert_allclose(found.logprob, expected[found.token], atol=FLOAT32_LOGITS)
        assert [token for token, _ in found.top] == np.argsort(-row)[:3].tolist()
        top = [value for _, value in found.top]
        np.testing.assert_allclose(top, np.sort(expected)[::-1][:3], atol=FLOAT32_LOGITS)


def test_without_asking_there_are_no_log_probabilities(model, prompt):
    assert model.generate(prompt, max_new_tokens=1).logprobs is None
    alone = model.generate(prompt, max_new_tokens=1, logprobs=0)
    assert alone.logprobs == []
    list(alone)
    assert [found.top for found in alone.logprobs] == [()]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"logit_bias": {4096: 1}}, "logit_bias: token id 4096 is outside the vocabulary of 4096"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias of token 3 must be a number in -100..100"),
        ({"presence_penalty": 3}, "presence_penalty must be a number in -2..2, found 3"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number in 0.01..100, found 0"),
        ({"logprobs": -1}, "logprobs must be an integer of at least 0 or None, found -1"),
        ({"logprobs": True}, "logprobs must be an integer of at least 0 or None, found True"),
        ({"allowed": [1, 2]}, "allowed must be a bool array of 4096 tokens"),
    ],
    ids=str,
)
def test_what_no_sampler_can_do_is_refused_before_anything_is_computed(
    model, prompt, wrong, message
):
    context = model.new_context()
    with pytest.raises(InputError, match=message):
        model.generate(prompt, context=context, **wrong)
    assert context.position == 0
