"""Multiple choice as EleutherAI's harness has it: the same texts, likelihoods and accuracies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks.hellaswag.utils import preprocess
from tests.tolerances import FLOAT32_LOGITS

from shoal.runtime import evaluate
from shoal.runtime.evaluation.choices import encode_item, log_likelihood, read_task
from shoal.runtime.evaluation.subjects import open_subject
from shoal.runtime.lm_eval import ShoalLM
from shoal.runtime.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.dependencies

ITEMS: list[dict[str, Any]] = [
    {
        "activity_label": "Scripture",
        "ctx_a": "And God said [header] unto him, Go.",
        "ctx_b": "the people",
        "endings": ["went up out of Egypt.", "bought a new  computer [step] quickly.", "sang"],
        "label": "0",
    },
    {
        "activity_label": "Politics",
        "ctx_a": "The President spoke of",
        "ctx_b": "",
        "endings": [" [title] Congress and the people", "whales", "the budget."],
        "label": "2",
    },
]


@pytest.fixture(scope="module")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS), encoding="utf-8")
    return path


def test_likelihoods_and_accuracies_are_the_harnesss(
    task_file: Path, fp32_bundle: Path, text: Path
) -> None:
    lm = ShoalLM.create_from_arg_string(f"pretrained={fp32_bundle},threads=1")
    subject, tokenizer = open_subject(fp32_bundle, threads=1), load_tokenizer(fp32_bundle)
    right, right_norm = [], []
    for raw, item in zip(ITEMS, read_task(task_file).items, strict=True):
        query = preprocess(f"{raw['activity_label']}: {raw['ctx_a']} {raw['ctx_b'].capitalize()}")
        choices = [preprocess(ending) for ending in raw["endings"]]
        assert (item.context, list(item.endings)) == (query, choices)
        asked = [
            Instance(request_type="loglikelihood", doc={}, arguments=(query, f" {choice}"), idx=n)
            for n, choice in enumerate(choices)
        ]
        expected = np.array([score for score, _ in lm.loglikelihood(asked, disable_tqdm=True)])
        found = [log_likelihood(subject, one) for one in encode_item(item, tokenizer, 2048)]
        np.testing.assert_allclose(found, expected, atol=10 * FLOAT32_LOGITS)
        right.append(expected.argmax() == int(raw["label"]))
        right_norm.append((expected / [len(c) for c in choices]).argmax() == int(raw["label"]))
    result = evaluate([fp32_bundle], texts=[text], window=64, tasks=[task_file], threads=1)
    score = result.models[0].tasks["items.jsonl"]
    assert (score.acc.value, score.acc_norm.value) == (np.mean(right), np.mean(right_norm))
