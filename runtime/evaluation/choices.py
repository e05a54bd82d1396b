"""Multiple-choice tasks: which ending of a text does a model find most likely?

Items are JSON lines in the format of HellaSwag: "endings", "label" (which is right, from 0;
"expected_index" will do), and either "ctx" or "ctx_a" and "ctx_b"; "activity_label" goes in front
if it is there. Text is cleaned and accuracy defined as in the HellaSwag task of EleutherAI's
lm-evaluation-harness, so that figures compare: acc takes the ending with the largest
log-likelihood, acc_norm divides log-likelihoods by the number of characters first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoal.graphs.errors import InputError
from shoal.runtime.evaluation.bootstrap import Bootstrap
from shoal.runtime.evaluation.metrics import DoubleArray, log_softmax
from shoal.runtime.evaluation.results import TaskScore
from shoal.runtime.evaluation.subjects import Subject, row_slices
from shoal.runtime.evaluation.texts import json_lines, reading_text
from shoal.runtime.text.tokenizer import Tokenizer

EncodedEnding = tuple[list[int], int]
"""Token ids of a context and an ending, and how many are the ending's."""


@dataclass(frozen=True, kw_only=True)
class ChoiceItem:
    """A text to be continued."""

    context: str
    endings: tuple[str, ...]
    right: int  # index of the right ending


@dataclass(frozen=True, kw_only=True)
class ChoiceTask:
    """The items of a file."""

    name: str
    items: tuple[ChoiceItem, ...]


def read_task(path: Path) -> ChoiceTask:
    """Read a task.

    Raises:
        InputError: the file cannot be read, is not UTF-8, has no items, or a wrong one.
    """
    with reading_text(path, "task") as file:
        items = tuple(_item(item, where) for where, item in json_lines(file, path))
    if not items:
        raise InputError(f"{path}: expected items of a task, found an empty file; choose another")
    return ChoiceTask(name=path.name, items=items)


def encode_item(item: ChoiceItem, tokenizer: Tokenizer, max_length: int) -> list[EncodedEnding]:
    """Token ids of the context with each ending; what is too long for the model loses its start."""
    begin = len(tokenizer.encode(item.context))
    encoded = [tokenizer.encode(f"{item.context} {ending}") for ending in item.endings]
    return [(ids[-max_length:], min(len(ids) - begin, max_length - 1)) for ids in encoded]


def log_likelihood(subject: Subject, encoded: EncodedEnding) -> float:
    """Log-likelihood of an ending after its context, in nats."""
    ids, count = encoded
    hidden, _ = subject.read(ids)
    hidden, next_ids = hidden[-count - 1 : -1], np.array(ids[-count:])
    score = 0.0
    for rows in row_slices(count, subject.vocab_size):
        log_probs = log_softmax(subject.logits(hidden[rows]))
        score += float(np.take_along_axis(log_probs, next_ids[rows, None], axis=1).sum())
    return score


@dataclass(frozen=True, kw_only=True)
class ChoiceLog:
    """Which items of a task a model got right, [items] of 0 and 1."""

    right: DoubleArray
    right_norm: DoubleArray


def judge(task: ChoiceTask, scores: Sequence[Sequence[float]]) -> ChoiceLog:
    """Compare the most likely endings with the right ones.

    Args:
        task: the items.
        scores: log-likelihoods of each item's endings.
    """
    right, right_norm = [], []
    for item, endings in zip(task.items, scores, strict=True):
        score = np.array(endings)
        lengths = np.array([len(ending) for ending in item.endings])
        right.append(float(score.argmax() == item.right))
        right_norm.append(float((score / lengths).argmax() == item.right))
    return ChoiceLog(right=np.array(right), right_norm=np.array(right_norm))


def task_score(found: ChoiceLog, reference: ChoiceLog | None) -> TaskScore:
    """Accuracies with their intervals; the reference's items are the same."""
    bootstrap, ones = Bootstrap(len(found.right)), np.ones(len(found.right))
    gain = None
    if reference is not None:
        gain = bootstrap.ratio(found.right_norm - reference.right_norm, ones)
    return TaskScore(
        items=len(ones),
        acc=bootstrap.ratio(found.right, ones),
        acc_norm=bootstrap.ratio(found.right_norm, ones),
        acc_norm_gain=gain,
    )


def _item(item: dict[str, object], where: str) -> ChoiceItem:
    endings, label = item.get("endings"), item.get("label", item.get("expected_index"))
    context = item.get("ctx")
    first, second = item.get("ctx_a"), item.get("ctx_b")
    if isinstance(first, str) and isinstance(second, str):
        context = f"{first} {second.capitalize()}"
    if not isinstance(context, str) or not context.strip():
        raise InputError(f'{where}: expected a text as "ctx", found {_shown(context)}')
    if (
        not isinstance(endings, list)
        or len(endings) < 2
        or not all(isinstance(ending, str) and _clean(ending) for ending in endings)
    ):
        raise InputError(
            f'{where}: expected two or more texts as "endings", found {_shown(endings)}'
        )
    if isinstance(label, str) and label.isascii() and label.isdigit():
        label = int(label)
    if type(label) is not int or not 0 <= label < len(endings):
        raise InputError(
            f'{where}: expected the number of an ending as "label", found {_shown(label)}'
        )
    activity = item.get("activity_label")
    if isinstance(activity, str):
        context = f"{activity}: {context}"
    return ChoiceItem(
        context=_clean(context), endings=tuple(_clean(text) for text in endings), right=label
    )


def _clean(text: str) -> str:
    """Without what the source's markup left behind."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _shown(value: object) -> str:
    return ascii(value)[:60]
