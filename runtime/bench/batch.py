"""``shoal bench --batch``: what reading several contexts in one step brings."""

from __future__ import annotations

import functools

from shoal.runtime.bench.timing import median_s, random_ids
from shoal.runtime.console.report import progress_line, write_grid, write_lines
from shoal.runtime.engine.context import Context
from shoal.runtime.model import Model
from shoal.runtime.units import format_rate


def measure_batch(
    model: Model, sizes: tuple[int, ...], depth: int, new_tokens: int, repeats: int
) -> list[dict[str, float]]:
    """Speed of decoding several contexts in one step, and of decoding them in turn.

    Args:
        model: the open bundle.
        sizes: numbers of contexts.
        depth: tokens in each context before the first decoded one.
        new_tokens: tokens decoded into each context per measurement.
        repeats: measurements, after a warm-up.

    Returns:
        For each size: contexts, depth, median milliseconds of a step, tokens per second of all
        contexts together, and tokens per second where each is decoded alone.
    """
    rows = []
    for size in sizes:
        progress_line(f"bench: {size} contexts in one step")
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


def write_batch(rows: list[dict[str, float]]) -> None:
    """Print what ``measure_batch`` found."""
    write_lines([""])
    write_grid(
        f"Several contexts in one step ({rows[0]['depth']} tokens in each)",
        ("contexts", "ms per step", "tokens/s", "one by one", "gain"),
        [
            (
                str(row["contexts"]),
                format_rate(row["ms_per_step"]),
                format_rate(row["tokens_per_s"]),
                format_rate(row["apart_tokens_per_s"]),
                f"{row['tokens_per_s'] / row['apart_tokens_per_s']:.2f}",
            )
            for row in rows
        ],
    )
