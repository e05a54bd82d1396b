"""Multiple choice by log-likelihood, on a model whose probabilities are known."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.graphs.errors import InputError
from shoal.runtime.evaluation.choices import (
    ChoiceItem,
    encode_item,
    judge,
    log_likelihood,
    read_task,
    task_score,
)
from shoal.runtime.text.tokenizer import Tokenizer, load_tokenizer

ITEM: dict[str, Any] = {"ctx": "A fish", "endings": ["swims.", "walks away.", "sings"], "label": 0}


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return load_tokenizer(tiny_checkpoint)


class LastTokenModel:
    """Its hidden state is the token itself, and the next token's logit is ``(last * next) % 7``."""

    vocab_size = 4096
    max_length = 64

    def read(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        return np.array(ids, np.float32)[:, None], np.empty((0, len(ids), 0), np.int64)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        return (hidden * np.arange(self.vocab_size) % 7).astype(np.float32)

    def of_pair(self, last: int, following: int) -> float:
        every = [float(last * token % 7) for token in range(self.vocab_size)]
        return every[following] - float(np.log(np.exp(every).sum()))


def task_file(folder: Path, *items: dict[str, Any]) -> Path:
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def test_log_likelihood_is_the_sum_over_the_endings_tokens(tokenizer: Tokenizer) -> None:
    model: Any = LastTokenModel()
    item = ChoiceItem(context="The old man", endings=("and the sea", "sleeps"), right=0)
    for ending, encoded in zip(item.endings, encode_item(item, tokenizer, 64), strict=True):
        whole = tokenizer.encode(f"The old man {ending}")
        start = len(tokenizer.encode("The old man"))
        pairs = zip(whole[start - 1 :], whole[start:], strict=False)
        expected = sum(model.of_pair(*pair) for pair in pairs)
        assert log_likelihood(model, encoded) == pytest.approx(expected, rel=1e-6)


def test_a_context_that_is_too_long_loses_its_start(tokenizer: Tokenizer) -> None:
    item = ChoiceItem(context="word " * 50 + "end", endings=("and more", "so"), right=0)
    whole = tokenizer.encode(item.context + " and more")
    (ids, count), _ = encode_item(item, tokenizer, 16)
    assert ids == whole[-16:]
    assert count == len(whole) - len(tokenizer.encode(item.context))


def test_acc_norm_divides_by_characters() -> None:
    """As lm-evaluation-harness does: lls / len(choice), not by tokens and not by bytes."""
    endings = ("\u6df1\u3044\u6d77", "abcd")  # 3 characters in 9 bytes, 4 in 4
    item = ChoiceItem(context="c", endings=endings, right=1)
    task = type("Task", (), {"items": (item,)})()
    found = judge(task, [[-6.0, -7.0]])  # -2 and -1.75 a character, -0.67 and -1.75 a byte
    assert (found.right.tolist(), found.right_norm.tolist()) == ([0.0], [1.0])


def test_accuracy_is_compared_item_by_item() -> None:
    log = type("Log", (), {"right": np.array([1.0, 0, 1, 1]), "right_norm": np.ones(4)})()
    other = type("Log", (), {"right": np.zeros(4), "right_norm": np.array([1.0, 1, 0, 1])})()
    score = task_score(log, other)
    assert (score.items, score.acc.value, score.acc_norm.value) == (4, 0.75, 1.0)
    assert score.acc_norm_gain is not None
    assert score.acc_norm_gain.value == 0.25
    assert task_score(log, None).acc_norm_gain is None


def test_items_are_cleaned_as_the_harness_does(tmp_path: Path) -> None:
    item = {
        "activity_label": "Fishing",
        "ctx_a": "A man sits. ",
        "ctx_b": "he",
        "endings": [" waits [substeps] long.", "leaves [title] Done"],
        "label": "1",
    }
    (found,) = read_task(task_file(tmp_path, item)).items
    assert found.context == "Fishing: A man sits. He"
    assert found.endings == ("waits long.", "leaves. Done")
    assert found.right == 1


def test_the_right_ending_may_be_an_expected_index(tmp_path: Path) -> None:
    item = {"ctx": "A fish", "endings": ["walks.", "swims."], "expected_index": 1}
    (found,) = read_task(task_file(tmp_path, item)).items
    assert found.right == 1


def test_a_context_may_be_given_whole(tmp_path: Path) -> None:
    (found,) = read_task(task_file(tmp_path, ITEM)).items
    assert (found.context, found.right) == ("A fish", 0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ctx": " "}, 'expected a text as "ctx"'),
        ({"ctx": None}, 'expected a text as "ctx", found None'),
        ({"endings": ["one"]}, 'expected two or more texts as "endings"'),
        ({"endings": ["one", " "]}, 'expected two or more texts as "endings"'),
        ({"endings": "one two"}, 'expected two or more texts as "endings"'),
        ({"label": 3}, 'expected the number of an ending as "label", found 3'),
        ({"label": "-1"}, 'expected the number of an ending as "label"'),
        ({"label": True}, 'expected the number of an ending as "label"'),
    ],
)
def test_a_wrong_item_is_named(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = task_file(tmp_path, ITEM, ITEM | change)
    with pytest.raises(InputError, match=re.escape(f"items.jsonl, line 2: {expected}")):
        read_task(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected items of a task"),
        (b"\xff\xfe", "expected UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_bad_task_file_is_refused(content: bytes | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=expected):
        read_task(path)
