"""What each type of latent cache costs in accuracy.

The shipped text is read with caches of each type. At each depth the same tokens follow, and the
predictions for them are compared with those over a float32 cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.graphs.cache_types import CACHE_TYPES, graph_role
from shoal.graphs.errors import InputError
from shoal.graphs.fidelity import shipped_text
from shoal.runtime.bench.timing import Say, say_nothing
from shoal.runtime.model import Model
from shoal.runtime.opening import open_bundle

SCORED_TOKENS = 128  # at each depth


def measure_cache_types(
    model: Model, depths: tuple[int, ...], options: dict[str, Any], say: Say = say_nothing
) -> list[dict[str, Any]]:
    """KL divergence from a float32 cache, by type and depth.

    Args:
        model: an open bundle with a tokenizer.
        depths: tokens in the cache before the ones that are compared.
        options: those of ``open_bundle`` it was opened with.
        say: told what is measured next.

    Returns:
        For each type but float32 and each depth: cache, cache_token_bytes, depth, kl_mean and
        kl_median (nats), same_top (share of the tokens).

    Raises:
        InputError: the text is too short, or the bundle has no tokenizer.
    """
    ids = _read_text(model, max(depths) + SCORED_TOKENS)
    rows: list[dict[str, Any]] = []
    expected: list[npt.NDArray[np.float64]] = []
    for cache in CACHE_TYPES:
        if graph_role("decoder", cache) not in model.manifest.graphs:
            continue
        say(f"{cache} cache")
        opened = open_bundle(model.bundle.folder, **{**options, "cache": cache})
        found = [_log_probabilities(opened, ids, depth) for depth in depths]
        if cache == "float32":
            expected = found
            continue
        token_bytes = opened.new_context().layer_state.bytes_per_token
        for depth, one, other in zip(depths, expected, found, strict=True):
            kind = {"cache": cache, "cache_token_bytes": token_bytes, "depth": depth}
            rows.append(kind | _compare(one, other))
    return rows


def _read_text(model: Model, count: int) -> list[int]:
    """The first ``count`` tokens of the shipped text."""
    ids = model.encode(shipped_text())
    if len(ids) < count:
        raise InputError(
            f"--cache-kl: the shipped text has {len(ids)} tokens, these depths need {count}; give "
            "smaller --depths"
        )
    return ids[:count]


def _log_probabilities(model: Model, ids: list[int], depth: int) -> npt.NDArray[np.float64]:
    """Of what follows each of the tokens after ``depth``, float64 [SCORED_TOKENS, W]."""
    context = model.new_context()
    if depth:
        context.step(ids[:depth], logits="none")
    logits = context.step(ids[depth : depth + SCORED_TOKENS], logits="all").logits
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _compare(expected: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> dict[str, float]:
    divergences = (np.exp(expected) * (expected - found)).sum(axis=1)
    same = expected.argmax(axis=1) == found.argmax(axis=1)
    return {
        "kl_mean": float(divergences.mean()),
        "kl_median": float(np.median(divergences)),
        "same_top": float(same.mean()),
    }
