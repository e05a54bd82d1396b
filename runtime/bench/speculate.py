"""What drafting brings on this machine, and why.

Text comes from the model itself: it continues a prompt greedily, and that is decoded again with
drafts. Times of different forms are taken in turns and compared pair by pair, so that a machine
that is busy with something else slows both.
"""

from __future__ import annotations

import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from shoal.runtime.bench.timing import Say, say_nothing
from shoal.runtime.generate import Generation
from shoal.runtime.model import Model
from shoal.runtime.opening import open_bundle

PROMPT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife. However little known the feelings or views of such a man may be on "
    "his first entering a neighbourhood, this truth is so well fixed in the minds of the "
    "surrounding families, that he is considered as the rightful property of some one or other of "
    "their daughters."
)
Draft = int | Literal["auto"]
DRAFTS: tuple[Draft, ...] = (1, 2, 3, "auto")

_LONGEST_STEP = 4  # tokens
_TOKENS_PER_TURN = 8
_SEED = 20


def measure_speculation(
    model: Model,
    new_tokens: int,
    repeats: int,
    options: dict[str, Any],
    say: Say = say_nothing,
) -> dict[str, Any]:
    """Acceptance, cost of steps of several tokens, and what comes of both.

    Args:
        model: an open bundle with a multi-token-prediction module.
        new_tokens: tokens decoded per measurement.
        repeats: measurements per figure; medians count.
        options: those of ``open_bundle`` it was opened with.
        say: told what is measured next.

    Returns:
        JSON-ready: ``steps`` (for each number of tokens k its cost relative to one and the
        distinct experts of a layer relative to one), ``drafts`` (for each draft length the
        acceptance by position, tokens per step, the tokens per step that would break even, and
        the speed-up) and ``is_possible`` (whether anything was drafted). ``auto`` has two rows:
        ``first_text`` is true where the bundle was opened anew for each text, so that audits and
        all that is to be learnt are part of the time.
    """
    ids = prompt_ids(model)
    text = [*ids, *model.generate(ids, max_new_tokens=new_tokens, stop_tokens=())]
    say("steps of several tokens")
    steps = _measure_steps(model, text, len(ids), repeats)

    def open_again() -> Model:
        return open_bundle(model.bundle.folder, **options)

    rows = []
    for draft in DRAFTS:
        say(f"{new_tokens} tokens with draft {draft}")
        row = _measure_draft(lambda: model, ids, draft, new_tokens, repeats)
        rows.append({"draft": draft, "first_text": False, **row})
    say(f"{new_tokens} tokens with draft auto, opened again")
    row = _measure_draft(open_again, ids, "auto", new_tokens, repeats)
    rows.append({"draft": "auto", "first_text": True, **row})
    return {
        "prompt_tokens": len(ids),
        "new_tokens": new_tokens,
        "steps": steps,
        "drafts": rows,
        "is_possible": any(row["acceptance"] for row in rows),
    }


def prompt_ids(model: Model) -> list[int]:
    """English text if the bundle has a tokenizer, else random tokens."""
    if model.has_tokenizer:
        return model.encode(PROMPT)
    generator = np.random.default_rng(_SEED)
    ids: list[int] = generator.integers(0, model.manifest.model.vocab_size, 96).tolist()
    return ids


def _measure_steps(
    model: Model, text: list[int], depth: int, repeats: int
) -> list[dict[str, float]]:
    context = model.new_context()
    context.prefill(text[:depth])
    lengths = range(1, _LONGEST_STEP + 1)

    def peek(count: int) -> Callable[[], float]:
        return lambda: _seconds(lambda: context.peek(text[depth : depth + count]))

    ratios, one_s = ratios_to_first([peek(count) for count in lengths], 5 * repeats)
    unions = _expert_unions(model, text, depth, lengths)
    return [
        {"tokens": count, "ms": one_s * ratio * 1000, "cost": ratio, "experts": union}
        for count, ratio, union in zip(lengths, ratios, unions, strict=True)
    ]


def _expert_unions(
    model: Model, text: list[int], depth: int, lengths: Sequence[int]
) -> list[float]:
    """Distinct experts of a layer that windows of the decoded text need, relative to one token."""
    if not model.manifest.model.moe_layers:
        return [1.0 for _ in lengths]
    ids_MTK = model.routing(text).expert_ids[:, depth:]
    return [
        statistics.mean(
            len(np.unique(ids_TK[start : start + count])) / ids_TK.shape[1]
            for ids_TK in ids_MTK
            for start in range(len(ids_TK) - count + 1)
        )
        for count in lengths
    ]


def _measure_draft(
    next_model: Callable[[], Model], ids: list[int], draft: Draft, new_tokens: int, repeats: int
) -> dict[str, Any]:
    ratios = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="draft: on this machine")
        for _ in range(repeats + 1):
            model = next_model()
            plain, drafted = (
                model.generate(ids, max_new_tokens=new_tokens, stop_tokens=(), draft=length)
                for length in (0, draft)
            )
            next(plain), next(drafted)  # they read the prompt
            seconds = seconds_in_turns([plain, drafted])
            ratios.append(seconds[1] / seconds[0])
    # The first pair does not count: pages of weights may have been read, and sizes audited.
    ratio, stats = statistics.median(ratios[1:]), drafted.draft_stats
    assert stats is not None, "drafts were asked for"
    return {
        "acceptance": [
            accepted / drafted if drafted else 0.0
            for accepted, drafted in zip(stats.accepted, stats.drafted, strict=True)
        ],
        "tokens_per_step": stats.tokens_per_step(),
        "break_even_tokens_per_step": ratio * stats.tokens_per_step(),
        "speed_up": 1 / ratio,
    }


def ratios_to_first(
    actions: Sequence[Callable[[], float]], repeats: int
) -> tuple[list[float], float]:
    """Times of actions taken in turns, relative to the first one of each turn.

    Args:
        actions: each does something and returns the seconds that count.
        repeats: turns.

    Returns:
        The median ratio of each action, and the median seconds of the first. One turn more is
        made at the start, which does not count.
    """
    turns: list[list[float]] = [[action() for action in actions] for _ in range(repeats + 1)]
    ratios = [
        statistics.median(turn[index] / turn[0] for turn in turns[1:])
        for index in range(len(actions))
    ]
    return ratios, statistics.median(turn[0] for turn in turns[1:])


def seconds_in_turns(generations: Sequence[Generation]) -> list[float]:
    """Seconds each generation takes to its end, a few tokens of each at a time.

    A machine changes its speed within a second, so whole texts one after the other would compare
    its moods.
    """
    seconds = [0.0 for _ in generations]
    going = set(range(len(generations)))
    while going:
        for index in sorted(going):
            started_s = time.perf_counter()
            if len(list(itertools.islice(generations[index], _TOKENS_PER_TURN))) == 0:
                going.remove(index)
            seconds[index] += time.perf_counter() - started_s
    return seconds


def _seconds(action: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    action()
    return time.perf_counter() - started_s
