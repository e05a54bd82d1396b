"""What changes logits before the draw, beside the definitions and transformers' processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tolerances import ADJUSTED_LOGITS

from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime.sampling.options import SamplingOptions
from shoal.runtime.sampling.sampler import Sampler

VOCAB = 12
IDS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)


def sampler(prompt: list[int] | None = None, allowed: Any = None, **options: Any) -> Sampler:
    return Sampler(SamplingOptions(**options), prompt or [0], VOCAB, seed=1, allowed=allowed)


def logits_of(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(
    prompt=IDS,
    answer=IDS,
    seed=st.integers(0, 99),
    frequency=st.sampled_from([0.0, 0.7, -1.3]),
    presence=st.sampled_from([0.0, 1.1, -0.4]),
    repetition=st.sampled_from([1.0, 1.3, 0.6]),
)
def test_all_of_it_in_order_equals_the_definition(
    prompt: list[int],
    answer: list[int],
    seed: int,
    frequency: float,
    presence: float,
    repetition: float,
) -> None:
    logits, bias = logits_of(seed), {3: 2.5, 5: -100.0, 7: 1.0}
    mask = np.ones(VOCAB, np.bool_)
    mask[[2, 4]] = False
    expected = []
    for token, logit in enumerate(logits.astype(np.float64)):
        value = logit + bias.get(token, 0.0)
        if token in prompt or token in answer:
            value = value * repetition if value < 0 else value / repetition
        count = answer.count(token)
        value -= frequency * count + presence * (count > 0)
        expected.append(value if mask[token] else -np.inf)
    chooses = sampler(
        prompt,
        mask,
        logit_bias=bias,
        frequency_penalty=frequency,
        presence_penalty=presence,
        repetition_penalty=repetition,
    )
    found = chooses._adjusted(logits, answer)
    np.testing.assert_allclose(
        found, np.array(expected), rtol=ADJUSTED_LOGITS, atol=ADJUSTED_LOGITS
    )
    assert chooses.choose(logits, answer) == int(np.argmax(found))
    assert (logits == logits_of(seed)).all(), "the model's own logits stay as they are"


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.2, 2.0])
def test_repetition_bias_and_mask_equal_the_processors_of_transformers(penalty: float) -> None:
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    prompt, answer, bias = [1, 2, 2, 5], [7, 5, 7], {2: 1.5, 7: -0.75}
    allowed = [0, 2, 5, 7, 9]
    mask = np.zeros(VOCAB, np.bool_)
    mask[allowed] = True
    theirs = processors.LogitsProcessorList(
        [
            processors.SequenceBiasLogitsProcessor([[[i], x] for i, x in bias.items()]),
            processors.RepetitionPenaltyLogitsProcessor(penalty),
            processors.PrefixConstrainedLogitsProcessor(lambda *_: allowed, 1),
        ]
    )
    ours = sampler(prompt, mask, logit_bias=bias, repetition_penalty=penalty)
    for seed in range(20):
        logits = logits_of(seed)
        ids = torch.tensor([prompt + answer])
        expected = theirs(ids, torch.from_numpy(logits.copy())[None])[0].numpy()
        np.testing.assert_array_equal(ours._adjusted(logits, answer), expected)


def test_without_any_of_it_logits_are_not_copied() -> None:
    logits = logits_of(0)
    assert sampler()._adjusted(logits, [1, 2]) is logits


def test_tokens_are_counted_as_the_answer_grows_and_once_each() -> None:
    grown, at_once = (sampler(frequency_penalty=0.5, repetition_penalty=1.5) for _ in range(2))
    answer = [3, 3, 1, 3, 8]
    for length in range(len(answer) + 1):
        found = grown._adjusted(logits_of(length), answer[:length])
    assert (found == at_once._adjusted(logits_of(len(answer)), answer)).all()


def test_a_mask_may_depend_on_the_answer_so_far() -> None:
    def only_next(tokens: Any) -> Any:
        mask = np.zeros(VOCAB, np.bool_)
        mask[len(tokens)] = True
        return mask

    answer: list[int] = []
    chooses = sampler(allowed=only_next, temperature=1.0)
    for seed in range(6):
        answer.append(chooses.choose(logits_of(seed), answer))
    assert answer == [0, 1, 2, 3, 4, 5]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999))
def test_a_mask_of_one_token_takes_a_random_number_all_the_same(seed: int) -> None:
    only = np.arange(VOCAB) == 4
    masks = iter([only, np.ones(VOCAB, np.bool_)])
    first, second = (
        Sampler(SamplingOptions(temperature=1.0), [0], VOCAB, seed=seed, allowed=allowed)
        for allowed in (lambda _: next(masks), None)
    )
    assert first.choose(logits_of(0), []) == 4
    second.choose(logits_of(0), [])
    assert first.choose(logits_of(1), [4]) == second.choose(logits_of(1), [4])


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (np.ones(VOCAB), "allowed must be bool of shape .12., found float64 of shape .12."),
        (np.ones(VOCAB + 1, np.bool_), "found bool of shape .13."),
        (np.ones((1, VOCAB), np.bool_), "found bool of shape .1, 12."),
        ([True] * VOCAB, "allowed must be a bool array of 12 tokens or a function .* found list"),
        ("all", "found str"),
    ],
)
def test_what_is_no_mask_is_refused_by_name(allowed: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampler(allowed=allowed)
    with pytest.raises(InputError, match=message):
        sampler(allowed=lambda _: allowed).choose(logits_of(0), [])


def test_a_mask_that_leaves_nothing_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="allowed: no token that the model takes for possible"):
        sampler(allowed=np.zeros(VOCAB, np.bool_)).choose(logits_of(0), [])
    logits = np.where(np.arange(VOCAB) == 3, -np.inf, logits_of(0)).astype(np.float32)
    with pytest.raises(InputError, match="allowed: no token that the model takes for possible"):
        sampler(allowed=np.arange(VOCAB) == 3).choose(logits, [])


def test_a_bias_outside_the_vocabulary_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="logit_bias: token id 12 is outside the vocabulary of 12"):
        sampler(logit_bias={"3": 1, "12": 1})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_damaged_logits_are_reported_whatever_a_mask_hides(bad: float) -> None:
    logits = logits_of(0)
    logits[3] = bad
    with pytest.raises(RuntimeFailure, match="logits: expected finite values"):
        sampler(allowed=np.arange(VOCAB) != 3).choose(logits, [])
