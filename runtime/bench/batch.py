"""What decoding several contexts in one step brings."""

from __future__ import annotations

import functools

from shoal.runtime.bench.timing import Say, median_s, random_ids, say_nothing
from shoal.runtime.engine.context import Context
from shoal.runtime.model import Model


def measure_batch(
    model: Model,
    sizes: tuple[int, ...],
    depth: int,
    new_tokens: int,
    repeats: int,
    say: Say = say_nothing,
) -> list[dict[str, float]]:
    """Speed of decoding several contexts in one step, and of decoding them in turn.

    Args:
        model: the open bundle.
        sizes: numbers of contexts.
        depth: tokens in each context before the first decoded one.
        new_tokens: tokens decoded into each context per measurement.
        repeats: measurements, after a warm-up.
        say: told what is measured next.

    Returns:
        For each size: contexts, depth, median milliseconds of a step, tokens per second of all
        contexts together, and tokens per second where each is decoded alone.
    """
    rows = []
    for size in sizes:
        say(f"{size} contexts in one step")
        ids = random_ids(model, depth + size * new_tokens)
        start = model.new_context()
        if depth:
            start.prefill(ids[:depth])
        contexts = [start.fork() for _ in range(size)]
        # Other tokens for each context: they choose the experts.
        steps = [ids[first : first + size] for first in range(depth, len(ids), size)]
        together, apart = (
            median_s(functools.partial(decode, model, contexts, depth, steps), repeats)
            for decode in (_decode_together, _decode_apart)
        )
        rows.append(
            {
                "contexts": size,
                "depth": depth,
                "ms_per_step": together / new_tokens * 1000,
                "tokens_per_s": size * new_tokens / together,
                "apart_tokens_per_s": size * new_tokens / apart,
            }
        )
    return rows


def _decode_together(
    model: Model, contexts: list[Context], depth: int, steps: list[list[int]]
) -> None:
    for context in contexts:
        context.rewind(depth)
    for tokens in steps:
        model.decode_batch(contexts, tokens)


def _decode_apart(
    _model: Model, contexts: list[Context], depth: int, steps: list[list[int]]
) -> None:
    for context in contexts:
        context.rewind(depth)
    for tokens in steps:
        for context, token in zip(contexts, tokens, strict=True):
            context.decode(token)
