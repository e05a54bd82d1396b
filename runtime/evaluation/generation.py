"""How long two models write the same: the reference's greedy continuation, checked by the other.

A greedy model writes the reference's tokens as long as each of them is its own top-1 token after
those before it. Reading prompt and continuation once shows that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shoal.graphs.errors import InputError
from shoal.runtime.evaluation.results import GenerationScore
from shoal.runtime.evaluation.stored_reference import StoredReference
from shoal.runtime.evaluation.subjects import Subject, row_slices
from shoal.runtime.evaluation.windows import Windows

_PROMPTS = 8
_PROMPT_TOKENS = 32

Continuation = tuple[list[int], list[int]]
"""Prompt and what follows."""


def prompts_of(windows: Windows, count: int, max_length: int) -> list[list[int]]:
    """The beginnings of the first windows.

    Args:
        windows: of the texts.
        count: tokens that will follow a prompt.
        max_length: tokens that the models can read.

    Raises:
        InputError: no window is long enough, or a model cannot read as many tokens.
    """
    long_enough = [w.ids for w in windows.windows if len(w.ids) >= _PROMPT_TOKENS]
    if not long_enough or _PROMPT_TOKENS + count > max_length:
        raise InputError(
            f"generate: expected windows of at least {_PROMPT_TOKENS} tokens and at most "
            f"{max_length - _PROMPT_TOKENS} to generate, found {count}; take a longer text or "
            "generate less"
        )
    return [ids[:_PROMPT_TOKENS].tolist() for ids in long_enough[:_PROMPTS]]


def stored_continuations(
    stored: StoredReference, prompts: Sequence[list[int]], count: int
) -> list[Continuation]:
    """What a stored reference wrote after the prompts.

    Raises:
        InputError: it holds no continuations or shorter ones.
    """
    found = stored.header.continuations
    if len(found) != len(prompts) or any(len(tokens) < count for tokens in found):
        raise InputError(
            f"{stored.path}: expected continuations of {count} tokens, found "
            f"{max(map(len, found), default=0)}; store it again with --generate {count}"
        )
    pairs = zip(prompts, found, strict=True)
    return [(prompt, list(tokens[:count])) for prompt, tokens in pairs]


def generation_score(subject: Subject, continuations: Sequence[Continuation]) -> GenerationScore:
    """Compare a model's own choices with the reference's continuations."""
    same = [_same_tokens(subject, prompt, tokens) for prompt, tokens in continuations]
    count = len(continuations[0][1])
    return GenerationScore(
        prompts=len(continuations),
        tokens=count,
        mean_same=float(np.mean(same)),
        identical=float(np.mean([number == count for number in same])),
    )


def _same_tokens(subject: Subject, prompt: list[int], tokens: list[int]) -> int:
    hidden, _ = subject.read([*prompt, *tokens[:-1]])
    hidden = hidden[len(prompt) - 1 :]
    for rows in row_slices(len(tokens), subject.vocab_size):
        differing = subject.logits(hidden[rows]).argmax(axis=-1) != np.array(tokens[rows])
        if differing.any():
            return int(rows.start + differing.argmax())
    return len(tokens)
