"""Whole evaluations of the trained tiny model against independent implementations."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tolerances import BUNDLE_LOGITS

from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime import Model, evaluate
from shoal.runtime.evaluation import subjects
from shoal.runtime.evaluation.results import Agreement, Evaluation

pytestmark = pytest.mark.dependencies

WINDOW = 64
STORED_PART = 2e-3
"""Relative: what a stored reference leaves out of a mean divergence; 1e-3 were measured."""


@pytest.fixture(scope="module")
def found(float_model: Model, int8_model: Model, text: Path) -> Evaluation:
    return evaluate([float_model, int8_model], texts=[text], window=WINDOW, generate=12)


@pytest.fixture(scope="module")
def stored(float_model: Model, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "prose.ref"
    evaluate(
        [float_model], texts=[text], window=WINDOW, generate=12, save_reference=path, threads=1
    )
    return path


@pytest.fixture(scope="module")
def windows(float_model: Model, text: Path) -> list[list[int]]:
    """Cut by hand."""
    ids = float_model.encode(text.read_text(encoding="utf-8"), add_special_tokens=False)
    return [[0, *ids[start : start + WINDOW - 1]] for start in range(0, len(ids), WINDOW - 1)]


@pytest.fixture(scope="module")
def log_probs(
    float_model: Model, int8_model: Model, windows: list[list[int]]
) -> list[list[np.ndarray]]:
    """By model and window, from all logits at once."""

    def of(model: Model, ids: list[int]) -> np.ndarray:
        logits = torch.from_numpy(model.logits(ids))
        return logits.double().log_softmax(-1).numpy()

    return [[of(model, ids) for ids in windows] for model in (float_model, int8_model)]


def agreement_of(result: Evaluation, index: int = 1) -> Agreement:
    agreement = result.models[index].agreement
    assert agreement is not None
    return agreement


def test_perplexity_is_that_of_transformers(
    found: Evaluation, windows: list[list[int]], tiny_checkpoint: Path
) -> None:
    from transformers import DeepseekV3ForCausalLM

    oracle: Any = DeepseekV3ForCausalLM.from_pretrained(
        tiny_checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    surprise = 0.0
    with torch.inference_mode():
        for ids in windows:
            batch = torch.tensor([ids])
            surprise += float(oracle(batch, labels=batch).loss) * (len(ids) - 1)
    predicted = sum(len(ids) - 1 for ids in windows)
    float_result = found.models[0]
    assert float_result.perplexity.value == pytest.approx(math.exp(surprise / predicted), rel=1e-4)


def test_bits_per_byte_are_the_surprise_of_the_whole_text(
    found: Evaluation, windows: list[list[int]], text: Path
) -> None:
    predicted = sum(len(ids) - 1 for ids in windows)
    for model in found.models:
        bits = math.log2(model.perplexity.value) * predicted
        assert model.bits_per_byte.value == pytest.approx(bits / text.stat().st_size)


def test_divergences_are_those_of_all_logits(
    found: Evaluation, log_probs: list[list[np.ndarray]]
) -> None:
    p, q = (np.concatenate(rows) for rows in log_probs)
    kl = (np.exp(p) * (p - q)).sum(-1)
    agreement = agreement_of(found)
    np.testing.assert_allclose(agreement.kl, kl, rtol=1e-6, atol=1e-9)
    figures = (agreement.kl_mean.value, agreement.kl_median, agreement.kl_p99, agreement.kl_max)
    expected = (kl.mean(), np.median(kl), np.quantile(kl, 0.99), kl.max())
    np.testing.assert_allclose(figures, expected, rtol=1e-6)
    assert agreement.same_top.value == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    best = [np.argsort(-rows, axis=-1)[:, :5] for rows in (p, q)]
    shared = [len(set(a) & set(b)) / 5 for a, b in zip(*best, strict=True)]
    assert agreement.shared_top.value == pytest.approx(np.mean(shared))
    ratio = found.models[1].perplexity.value / found.models[0].perplexity.value
    assert agreement.perplexity_ratio.value == pytest.approx(ratio)
    assert agreement.kl_mean.low is not None
    assert agreement.kl_mean.high is not None
    assert agreement.kl_mean.low < agreement.kl_mean.value < agreement.kl_mean.high


def test_routing_is_compared_layer_by_layer(
    found: Evaluation, float_model: Model, int8_model: Model, windows: list[list[int]]
) -> None:
    same = np.zeros(4)
    for ids in windows:
        a, b = (model.routing(ids).expert_ids for model in (float_model, int8_model))
        for layer, token in np.ndindex(a.shape[:2]):
            same[layer] += len(set(a[layer, token]) & set(b[layer, token])) / a.shape[2]
    same /= sum(map(len, windows))
    agreement = agreement_of(found)
    assert list(agreement.same_experts_by_layer) == [1, 2, 3, 4]
    np.testing.assert_allclose(list(agreement.same_experts_by_layer.values()), same)
    assert agreement.same_experts is not None
    assert agreement.same_experts.value == pytest.approx(same.mean())


def test_generations_are_compared_until_they_differ(
    float_model: Model, int8_model: Model, windows: list[list[int]], text: Path
) -> None:
    """The float bundle as the model that is judged: its choices hardly depend on how it reads."""
    result = evaluate([int8_model, float_model], texts=[text], window=WINDOW, generate=12)
    lengths = []
    for ids in [ids for ids in windows if len(ids) >= 32][:8]:
        a, b = (
            list(model.generate(ids[:32], max_new_tokens=12, stop_tokens=()))
            for model in (int8_model, float_model)
        )
        lengths.append(next((n for n in range(12) if a[n] != b[n]), 12))
    score = result.models[1].generation
    assert score is not None
    assert (score.prompts, score.tokens) == (len(lengths), 12)
    assert score.mean_same == pytest.approx(np.mean(lengths))
    assert score.identical == pytest.approx(np.mean([length == 12 for length in lengths]))


def test_a_stored_reference_does_as_well_as_the_model(
    found: Evaluation, stored: Path, int8_model: Model, text: Path
) -> None:
    again = evaluate([int8_model], texts=[text], window=WINDOW, reference=stored, generate=12)
    assert again.reference == f"{found.models[0].name} (stored)"
    expected, agreement = agreement_of(found), agreement_of(again)
    assert again.models[0].perplexity.value == pytest.approx(
        found.models[0].perplexity.value, rel=1e-6
    )
    assert agreement.kl_mean.value == pytest.approx(expected.kl_mean.value, rel=STORED_PART)
    assert agreement.kl_p999 == pytest.approx(expected.kl_p999, rel=STORED_PART)
    assert agreement.same_top == expected.same_top
    assert agreement.shared_top == expected.shared_top
    assert agreement.same_experts_by_layer == expected.same_experts_by_layer
    assert again.models[1].generation == found.models[1].generation


def test_a_checkpoint_is_its_own_float_bundle(
    tiny_checkpoint: Path, float_model: Model, text: Path
) -> None:
    result = evaluate(
        [tiny_checkpoint, float_model], texts=[text], window=WINDOW, generate=12, threads=1
    )
    agreement = agreement_of(result)
    assert [model.weights for model in result.models] == ["float32", "fp32"]
    assert agreement.kl_max < BUNDLE_LOGITS**2
    assert set(agreement.same_experts_by_layer.values()) == {1.0}
    generation = result.models[1].generation
    assert generation is not None
    assert generation.identical == 1.0


def test_logits_are_computed_for_a_few_positions_at_a_time(
    found: Evaluation,
    float_model: Model,
    int8_model: Model,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[int] = []
    head_logits = Model.head_logits

    def watched(model: Model, hidden: np.ndarray) -> np.ndarray:
        rows.append(len(hidden))
        return head_logits(model, hidden)

    monkeypatch.setattr(Model, "head_logits", watched)
    monkeypatch.setattr(subjects, "_LOGITS_AT_ONCE", 7 * 4096)
    again = evaluate([int8_model, float_model], texts=[text], window=WINDOW, reference=float_model)
    assert max(rows) == 7
    np.testing.assert_allclose(agreement_of(again).kl, agreement_of(found).kl, rtol=0.01, atol=1e-6)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "items.jsonl"
    items = [
        {"ctx": "And God said, Let there be", "endings": ["light", "a committee of the House"]},
        {"ctx": "The President of the United", "endings": ["whales", "States", "nations of it"]},
    ]
    lines = (json.dumps(item | {"label": label}) for label, item in enumerate(items))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_choices_are_those_of_transformers(
    task: Path, float_model: Model, text: Path, tiny_checkpoint: Path
) -> None:
    """Likelihoods as lm-evaluation-harness asks its models for them."""
    from transformers import AutoTokenizer, DeepseekV3ForCausalLM

    oracle: Any = DeepseekV3ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_checkpoint)
    right, right_norm = [], []
    for line in task.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        begin = len(tokenizer(item["ctx"])["input_ids"])
        scores = []
        for ending in item["endings"]:
            ids = torch.tensor([tokenizer(f"{item['ctx']} {ending}")["input_ids"]])
            with torch.inference_mode():
                log_probs = oracle(ids).logits[0].double().log_softmax(-1)
            after = range(begin, ids.shape[1])
            scores.append(sum(float(log_probs[i - 1, ids[0, i]]) for i in after))
        lengths = [len(ending) for ending in item["endings"]]
        right.append(np.argmax(scores) == item["label"])
        right_norm.append(np.argmax(np.divide(scores, lengths)) == item["label"])
    result = evaluate([float_model], texts=[text], window=WINDOW, tokens=100, tasks=[task])
    score = result.models[0].tasks["items.jsonl"]
    assert (score.items, score.acc.value, score.acc_norm.value) == (
        2,
        np.mean(right),
        np.mean(right_norm),
    )


def test_results_are_plain_json_and_a_frame(found: Evaluation) -> None:
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    agreement = agreement_of(found)
    mean = record["models"][1]["agreement"]["kl_mean"]
    assert mean["value"] == pytest.approx(agreement.kl_mean.value, rel=1e-5)
    frame = found.to_frame()
    names = [model.name for model in found.models]
    assert frame.index.tolist() == names
    assert frame.loc[names[1], "kl_mean"] == mean["value"]
    assert frame.loc[names[1], "kl_mean.high"] == mean["high"]
    assert frame.loc[names[1], "generation.tokens"] == 12
    assert np.isnan(frame.loc[names[0], "kl_mean"])


def test_a_missing_pandas_says_what_to_install(
    found: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(RuntimeFailure, match=r"pip install 'shoal\[eval\]'"):
        found.to_frame()


def test_one_model_alone_is_compared_with_nothing(int8_model: Model, text: Path) -> None:
    result = evaluate([int8_model], texts=[text], window=WINDOW, tokens=100)
    assert result.reference is None
    assert result.models[0].agreement is None


def test_progress_ends_when_everything_is_read(int8_model: Model, text: Path, task: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    result = evaluate(
        [int8_model],
        texts=[text],
        window=WINDOW,
        tasks=[task],
        progress=lambda done, total, what: calls.append((done, total, what)),
    )
    done = [call[0] for call in calls]
    assert done == sorted(set(done))
    assert calls[-1] == (done[-1], done[-1], result.models[0].name)
    assert calls[0][1] == done[-1] > result.tokens


@pytest.mark.parametrize("before", [None, b"an older reference"])
def test_a_reference_appears_whole_or_not_at_all(
    before: bytes | None, int8_model: Model, text: Path, tmp_path: Path
) -> None:
    path = tmp_path / "stopped.ref"
    if before is not None:
        path.write_bytes(before)

    def stop(done: int, total: int, what: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate([int8_model], texts=[text], window=WINDOW, save_reference=path, progress=stop)
    assert [file.name for file in tmp_path.iterdir()] == ([path.name] if before else [])
    assert before is None or path.read_bytes() == before


def refusals(text: Path, other_text: Path) -> Iterator[tuple[dict[str, Any], str]]:
    advice = "give the --text, --window and --tokens it was stored with"
    yield {"texts": [other_text]}, f"expected a reference for this text .* {advice}"
    yield {"texts": [text], "window": 32}, f"expected a reference for this text .* {advice}"
    yield {"texts": [text], "tokens": 70}, f"expected a reference for this text .* {advice}"
    yield {"texts": [text], "generate": 13}, "expected continuations of 13 tokens, found 12"
    yield {"texts": [text], "save_reference": "x"}, "expected a model as the reference to save"


@pytest.mark.parametrize("number", range(5))
def test_a_stored_reference_of_another_text_is_refused(
    number: int, stored: Path, int8_model: Model, text: Path, tmp_path: Path
) -> None:
    other_text = tmp_path / "other.txt"
    other_text.write_text(text.read_text(encoding="utf-8")[1:], encoding="utf-8")
    options, expected = list(refusals(text, other_text))[number]
    options = {"window": WINDOW, "reference": stored, **options}
    with pytest.raises(InputError, match=expected):
        evaluate([int8_model], **options)


def test_a_stored_reference_of_another_model_is_refused(
    stored: Path, relabelled: Callable[..., Path], text: Path
) -> None:
    other = relabelled(config={"rope_theta": 10001.0})
    with pytest.raises(InputError, match=r"for this model .* made from another config\.json"):
        evaluate([other], texts=[text], window=WINDOW, reference=stored, threads=1)


def test_models_with_different_tokenizers_are_refused(
    int8_bundle: Path, stored: Path, relabelled: Callable[..., Path], text: Path
) -> None:
    other = relabelled(merges_dropped=1)
    with pytest.raises(InputError, match=r"relabelled: expected the tokenizer of .*int8, found"):
        evaluate([int8_bundle, other], texts=[text], window=WINDOW, threads=1)
    with pytest.raises(InputError, match="expected a reference for this tokenizer"):
        evaluate([other], texts=[text], window=WINDOW, reference=stored, threads=1)


@pytest.mark.parametrize("place", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_damaged_reference_is_refused(
    place: float, stored: Path, int8_model: Model, text: Path, tmp_path: Path
) -> None:
    content = bytearray(stored.read_bytes())
    content[int(place * len(content))] ^= 0x10
    path = tmp_path / "damaged.ref"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.ref: .*(damaged|another kind of file)"):
        evaluate([int8_model], texts=[text], window=WINDOW, reference=path)


@pytest.mark.parametrize("kept", [0, 3, 12, 500, -1])
def test_an_incomplete_reference_is_refused(
    kept: int, stored: Path, int8_model: Model, text: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.ref"
    path.write_bytes(stored.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cut\.ref: .*(damaged|another kind of file)"):
        evaluate([int8_model], texts=[text], window=WINDOW, reference=path)


@pytest.mark.parametrize("window", [1, 4096])
def test_a_window_that_no_model_can_read_is_refused(
    window: int, int8_model: Model, text: Path
) -> None:
    with pytest.raises(InputError, match="window: expected 2 to 2048 tokens"):
        evaluate([int8_model], texts=[text], window=window)


def test_a_model_without_a_tokenizer_is_refused(relabelled: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"relabelled: evaluating needs tokenizer\.json"):
        evaluate([relabelled(has_tokenizer=False)], threads=1)


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(InputError, match="expected a bundle or a checkpoint, found none"):
        evaluate([])


def test_generating_needs_something_to_compare_with(int8_model: Model, text: Path) -> None:
    with pytest.raises(InputError, match="expected a second model to compare with"):
        evaluate([int8_model], texts=[text], window=WINDOW, generate=4)
    with pytest.raises(InputError, match="windows of at least 32 tokens"):
        evaluate([int8_model, int8_model], texts=[text], window=16, generate=4)
