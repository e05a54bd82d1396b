"""The evaluation harness runs bundles; its figures are those computed by hand from the logits."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from tests.tolerances import FLOAT32_LOGITS

from shoal.graphs.errors import InputError
from shoal.runtime import open_bundle
from shoal.runtime.lm_eval import ShoalLM, main
from shoal.runtime.model import Model
from shoal.runtime.text.text_files import TextFiles

pytestmark = pytest.mark.dependencies

ITEMS = (
    ("And God said unto", [" him", " Moses", " elephant soup"], 0),
    ("And God said unto", [" the people", " zzz"], 1),
    ("It is a truth universally", [" acknowledged, that a", " the of and"], 0),
)
TEXTS = ("In the beginning God created the heaven and the earth.", "The end.\n")
PROMPTS = ("And it came to pass, that", "The man said")
ANSWER_TOKENS = 12

CHOICES = """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: DIR/choices.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
PERPLEXITY = """
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: DIR/texts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
"""
ANSWERS = """
task: answers
dataset_path: json
dataset_kwargs: {data_files: {test: DIR/answers.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{query}}"
doc_to_target: "{{gold}}"
generation_kwargs: {until: [","], max_gen_toks: TOKENS, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def model(fp32_bundle: Path) -> Model:
    return open_bundle(fp32_bundle, threads=1)


@pytest.fixture(scope="module")
def lm(fp32_bundle: Path) -> ShoalLM:
    found = get_model("shoal")
    assert found is ShoalLM
    arguments = f"pretrained={fp32_bundle},threads=1,max_length=64"
    lm: ShoalLM = ShoalLM.create_from_arg_string(arguments)
    return lm


def by_hand(model: Model, context: list[int], ids: list[int]) -> tuple[float, bool]:
    """Log-likelihood of ``ids`` after ``context``, all read at once, in float64."""
    logits = model.logits(context + ids)[len(context) - 1 : -1].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    chosen = probabilities[range(len(ids)), ids]
    return float(np.log(chosen).sum()), bool((logits.argmax(1) == ids).all())


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def write_tasks(folder: Path, model: Model) -> None:
    """Of the two answers the first is that of the model."""
    answer = model.generate(model.encode(PROMPTS[0]), max_new_tokens=ANSWER_TOKENS, stop=[","])
    golds = ["".join(answer.pieces()), "no model says this"]
    documents: dict[str, list[dict[str, Any]]] = {
        "choices": [{"query": q, "choices": c, "gold": g} for q, c, g in ITEMS],
        "texts": [{"text": text} for text in TEXTS],
        "answers": [{"query": q, "gold": g} for q, g in zip(PROMPTS, golds, strict=True)],
    }
    for (name, held), task in zip(documents.items(), (CHOICES, PERPLEXITY, ANSWERS), strict=True):
        lines = "".join(json.dumps(document) + "\n" for document in held)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        filled = task.replace("DIR", str(folder)).replace("TOKENS", str(ANSWER_TOKENS))
        (folder / f"{name}.yaml").write_text(filled, encoding="utf-8")


def test_the_harness_reports_what_is_computed_by_hand(
    fp32_bundle: Path, model: Model, tmp_path: Path
) -> None:
    write_tasks(tmp_path, model)
    command = [sys.executable, "-m", "shoal.runtime.lm_eval", "run", "--model", "shoal"]
    command += ["--model_args", f"pretrained={fp32_bundle},threads=1,kernels=portable"]
    command += ["--tasks", "choices,texts,answers", "--include_path", str(tmp_path)]
    command += ["--output_path", str(tmp_path / "results.json")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        command, env=os.environ | offline, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("results*.json")
    results = json.loads(written.read_text())["results"]

    scores = [
        [by_hand(model, model.encode(q), model.encode(c, add_special_tokens=False))[0] for c in cs]
        for q, cs, _ in ITEMS
    ]
    by_byte = [
        [score / len(choice) for score, choice in zip(row, choices, strict=True)]
        for row, (_, choices, _) in zip(scores, ITEMS, strict=True)
    ]
    for metric, table in {"acc": scores, "acc_norm": by_byte}.items():
        right = [np.argmax(row) == gold for row, (_, _, gold) in zip(table, ITEMS, strict=True)]
        assert results["choices"][f"{metric},none"] == pytest.approx(np.mean(right))
    bos = model.manifest.model.bos_token_id
    assert bos is not None
    nats = sum(
        by_hand(model, [bos], model.encode(text, add_special_tokens=False))[0] for text in TEXTS
    )
    num_bytes, num_words = sum(map(len, TEXTS)), sum(len(text.split()) for text in TEXTS)
    bits_per_byte = -nats / math.log(2) / num_bytes
    assert results["texts"]["bits_per_byte,none"] == pytest.approx(bits_per_byte, rel=1e-5)
    assert math.log(results["texts"]["word_perplexity,none"]) == pytest.approx(
        -nats / (num_words + 1), rel=1e-5
    )
    assert results["answers"]["exact_match,none"] == 0.5


def test_loglikelihoods_come_in_the_order_of_the_requests(lm: ShoalLM, model: Model) -> None:
    pairs = [(query, choice) for query, choices, _ in ITEMS for choice in choices]
    pairs.append(("", "Once upon a time"))
    greedy = list(model.generate(model.encode("And God said"), max_new_tokens=3))
    pairs.append(("And God said", model.decode(greedy)))
    found = lm.loglikelihood([request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    bos = model.encode("")
    for (context, choice), (score, is_greedy) in zip(pairs, found, strict=True):
        before = model.encode(context) if context else [lm.prefix_token_id]
        ids = model.encode(context + choice)[len(before) :] if context else model.encode(choice)
        if not context and bos:
            ids = ids[len(bos) :]
        expected, expected_greedy = by_hand(model, before, ids)
        assert score == pytest.approx(expected, abs=len(ids) * 2 * FLOAT32_LOGITS)
        assert is_greedy == expected_greedy
    assert found[-1][1]
    assert not found[2][1]


def test_a_text_longer_than_the_context_is_scored_token_by_token_once(
    lm: ShoalLM, model: Model
) -> None:
    text = " ".join([*TEXTS, *PROMPTS] * 6)
    ids = model.encode(text, add_special_tokens=False)
    length = lm.max_length
    assert len(ids) > 2 * length
    (found,) = lm.loglikelihood_rolling([request("loglikelihood_rolling", text)], disable_tqdm=True)
    expected = by_hand(model, [lm.prefix_token_id], ids[:length])[0]
    for start in range(length, len(ids), length):
        stop = min(start + length, len(ids))
        # The last window is full: what it need not score is its context.
        begin = stop - length - 1
        expected += by_hand(model, ids[begin:start], ids[start:stop])[0]
    assert found == pytest.approx(expected, abs=len(ids) * 2 * FLOAT32_LOGITS)


def test_answers_stop_where_the_task_says(lm: ShoalLM, model: Model) -> None:
    ids = model.encode(PROMPTS[0])
    options = {"until": ["\n", ""], "max_gen_toks": 8, "do_sample": False, "temperature": 0.7}
    sampled = {"until": [], "max_gen_toks": 8, "do_sample": True, "top_k": 5, "seed": 3}
    found = lm.generate_until(
        [
            request("generate_until", PROMPTS[0], sampled),
            request("generate_until", PROMPTS[0], options),
            request("generate_until", " ".join(PROMPTS * 20), options),
        ],
        disable_tqdm=True,
    )
    expected = model.generate(ids, max_new_tokens=8, stop=["\n"])
    assert found[1] == "".join(expected.pieces())
    expected = model.generate(ids, max_new_tokens=8, temperature=1.0, top_k=5, seed=3)
    assert found[0] == "".join(expected.pieces())
    cut = model.encode(" ".join(PROMPTS * 20))[-(lm.max_length - 8) :]
    assert found[2] == "".join(model.generate(cut, max_new_tokens=8, stop=["\n"]).pieces())


def test_chats_are_the_text_of_the_template_and_begin_once(
    fp32_bundle: Path, lm: ShoalLM, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    bos = model.decode([lm.prefix_token_id], skip_special_tokens=False)
    source = "{{ bos_token }}{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
    monkeypatch.setattr(TextFiles, "_template_source", (source, "here"))
    text = lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert text == f"{bos}<|user|>Hello"
    ids = lm.tok_encode(text)
    assert ids == model.encode(text, add_special_tokens=False)
    assert ids.count(lm.prefix_token_id) == 1
    assert lm.tok_encode("Hello") == model.encode("Hello")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "found num_beams=4; leave these out"),
        ({"no_repeat_ngram_size": 3}, "found no_repeat_ngram_size=3; leave these out"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number in 0.01..100, found 0"),
        ({"presence_penalty": "x"}, "presence_penalty must be a number in -2..2, found 'x'"),
        ({"logit_bias": [5]}, "logit_bias must be numbers by token id, as .42: -1.5., found"),
        ({"logit_bias": {"4096": 1}}, "logit_bias: token id 4096 is outside the vocabulary"),
        ({"tempreature": 0.7, "n": 2}, "found n=2, tempreature=0.7; leave these out"),
        ({"top_p": 7}, "top_p must be a number in 0..1, found 7"),
        ({"seed": -1}, "seed must be an integer of at least 0 or None, found -1"),
        ({"until": ["\n", 5]}, "until: expected texts that end an answer"),
        ({"temperature": "hot"}, "expected numbers as temperature and max_gen_toks: .*'hot'"),
        ({"max_gen_toks": "many"}, "expected numbers as temperature and max_gen_toks: .*'many'"),
        ({"max_gen_toks": 64}, "less than the context of 64"),
        ({"max_gen_toks": -1}, "max_new_tokens must be an integer of at least 0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("do_sample", [True, False])
def test_what_cannot_be_done_is_refused_before_anything_is(
    do_sample: bool,
    options: dict[str, Any],
    message: str,
    lm: ShoalLM,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ShoalLM, "_answer", lambda *_: pytest.fail("a request was answered"))
    fine = {"until": [], "do_sample": do_sample, "max_gen_toks": 4}
    requests = [
        request("generate_until", "a", fine),
        request("generate_until", "x", fine | options),
    ]
    with pytest.raises(InputError, match=message) as caught:
        lm.generate_until(requests, disable_tqdm=True)
    assert "\n" not in str(caught.value)


def test_a_switch_that_is_no_boolean_is_refused(lm: ShoalLM) -> None:
    asked = request("generate_until", "x", {"until": [], "do_sample": "maybe"})
    with pytest.raises(InputError, match="do_sample: expected true or false, found 'maybe'"):
        lm.generate_until([asked], disable_tqdm=True)


@pytest.mark.parametrize("do_sample", [True, False])
def test_options_without_effect_are_taken(do_sample: bool, lm: ShoalLM) -> None:
    plain = {"until": ["\n"], "max_gen_toks": 8, "do_sample": do_sample, "seed": 4}
    harmless = {
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "use_cache": False,
        "top_k": None,
        "num_return_sequences": None,
    }
    requests = [request("generate_until", PROMPTS[0], o) for o in (plain, plain | harmless)]
    found = lm.generate_until(requests, disable_tqdm=True)
    assert found[0] == found[1] != ""


@pytest.mark.parametrize("do_sample", [True, False])
def test_penalties_and_bias_are_those_of_generate(
    do_sample: bool, lm: ShoalLM, model: Model
) -> None:
    changes = {"repetition_penalty": 1.4, "frequency_penalty": 0.5, "logit_bias": {"70": 3}}
    asked = {"until": [], "max_gen_toks": 12, "do_sample": do_sample} | changes
    sampling = {"temperature": 1.0, "seed": 4} if do_sample else {}
    (found,) = lm.generate_until(
        [request("generate_until", PROMPTS[0], asked | sampling)], disable_tqdm=True
    )
    options: dict[str, Any] = changes | sampling
    answer = model.generate(model.encode(PROMPTS[0]), max_new_tokens=12, **options)
    assert found == "".join(answer.pieces())
    plain = model.generate(model.encode(PROMPTS[0]), max_new_tokens=12, **sampling)  # type: ignore[arg-type]
    assert found != "".join(plain.pieces())


def test_a_model_without_bos_and_eos_is_told_what_a_text_begins_after(
    endless_bundle: Path, lm: ShoalLM
) -> None:
    endless = ShoalLM(str(endless_bundle), threads=1, max_length=64)
    assert endless.eot_token_id is None
    asked = request("generate_until", PROMPTS[0], {"until": [","], "max_gen_toks": 8})
    assert endless.generate_until([asked], disable_tqdm=True) != [""]
    pair = [request("loglikelihood", "And God", " said")]
    scores = [each.loglikelihood(pair, disable_tqdm=True) for each in (endless, lm)]
    assert scores[0] == scores[1]
    whole, empty = request("loglikelihood_rolling", TEXTS[0]), request("loglikelihood", "", "And")
    advice = "no BOS and no EOS token .* --model_args prefix_token_id=ID"
    with pytest.raises(InputError, match=advice):
        endless.loglikelihood_rolling([whole], disable_tqdm=True)
    with pytest.raises(InputError, match=advice):
        endless.loglikelihood([empty], disable_tqdm=True)

    arguments = f"pretrained={endless_bundle},threads=1,max_length=64"
    told = ShoalLM.create_from_arg_string(f"{arguments},prefix_token_id={lm.prefix_token_id}")
    for kind, asked in (("loglikelihood_rolling", whole), ("loglikelihood", empty)):
        answers = [getattr(each, kind)([asked], disable_tqdm=True) for each in (told, lm)]
        assert answers[0] == answers[1]
    with pytest.raises(InputError, match="token id 4096 is outside the vocabulary of 4096"):
        ShoalLM.create_from_arg_string(f"{arguments},prefix_token_id=4096")


def test_a_context_longer_than_the_model_can_read_is_refused(fp32_bundle: Path) -> None:
    with pytest.raises(InputError, match="expected 1 to 2048"):
        ShoalLM.create_from_arg_string(f"pretrained={fp32_bundle},max_length=99999")


def test_a_failure_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    argument = f"pretrained={tmp_path / 'nowhere'}"
    monkeypatch.setattr(
        "lm_eval.__main__.cli_evaluate", lambda: ShoalLM.create_from_arg_string(argument)
    )
    with pytest.raises(SystemExit, match=r"^error: .*nowhere") as caught:
        main()
    assert "\n" not in str(caught.value)
