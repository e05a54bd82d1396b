"""How fast a bundle reads prompts and decodes on this machine."""

from __future__ import annotations

from shoal.graphs.footprint import bundle_cache_token_bytes
from shoal.runtime.bench.timing import Say, median_s, random_ids, say_nothing
from shoal.runtime.engine.context import Context
from shoal.runtime.model import Model


def measure_prefill(
    model: Model, lengths: tuple[int, ...], repeats: int, say: Say = say_nothing
) -> list[dict[str, float]]:
    """Prompt reading speed, the head's logits for the last position included.

    Args:
        model: the open bundle.
        lengths: prompt lengths in tokens.
        repeats: measurements per length, after one warm-up.
        say: told what is measured next.

    Returns:
        For each length: tokens, median milliseconds, tokens per second.
    """
    rows = []
    for length in lengths:
        say(f"prefill of {length} tokens")
        ids = random_ids(model, length)
        context = model.new_context()
        seconds = median_s(lambda: _prefill_anew(context, ids), repeats)  # noqa: B023
        rows.append({"tokens": length, "ms": seconds * 1000, "tokens_per_s": length / seconds})
    return rows


def measure_decode(
    model: Model,
    depths: tuple[int, ...],
    new_tokens: int,
    repeats: int,
    say: Say = say_nothing,
) -> list[dict[str, float]]:
    """Speed of token-by-token decoding with a given number of tokens in the context.

    Args:
        model: the open bundle.
        depths: tokens in the context before the first decoded one; at 0 the context is empty.
        new_tokens: tokens decoded per measurement.
        repeats: measurements per depth, after a warm-up.
        say: told what is measured next.

    Returns:
        For each depth: depth, median milliseconds per token, tokens per second, and the bytes of
        weights and cache read per second.
    """
    rows = []
    for depth in depths:
        say(f"decode at depth {depth}")
        context = model.new_context()
        if depth:
            context.prefill(random_ids(model, depth))
        ids = random_ids(model, new_tokens)
        seconds = median_s(lambda: _decode_all(context, depth, ids), repeats)  # noqa: B023
        token_s = seconds / new_tokens
        rows.append(
            {
                "depth": depth,
                "ms_per_token": token_s * 1000,
                "tokens_per_s": 1 / token_s,
                "read_bytes_per_s": _token_bytes(model, depth + new_tokens // 2) / token_s,
            }
        )
    return rows


def _prefill_anew(context: Context, ids: list[int]) -> None:
    context.rewind(0)
    context.prefill(ids)


def _decode_all(context: Context, depth: int, ids: list[int]) -> None:
    context.rewind(depth)
    for token in ids:
        context.decode(token)


def _token_bytes(model: Model, depth: int) -> int:
    """Bytes one decoded token must read: its weights and the cache of all tokens before it."""
    cache_bytes = bundle_cache_token_bytes(model.manifest.model, model.cache_type)
    return model.manifest.token_read_bytes + depth * cache_bytes
