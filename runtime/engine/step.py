"""What one step of a context computes, what it returns, and the arrays it is written to.

T new tokens   D hidden_size   K num_experts_per_tok   W vocab_size   M MoE layers
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.graphs.errors import RuntimeFailure
from shoal.graphs.manifest import ModelInfo

FloatArray = npt.NDArray[np.float32]

SCORE_BYTES = 64 << 20
"""Attention scores of one chunk, H*T*S float32 values, stay below this where they can."""

SMALLEST_CHUNK = 16
LARGEST_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The experts each MoE layer sent each token to."""

    layers: tuple[int, ...]  # M indices of decoder layers
    # [M,T,K], by falling selection score; ids from n_routed_experts on have no weights
    expert_ids: npt.NDArray[np.int64]
    expert_weights: FloatArray  # [M,T,K], what each expert's output was multiplied by


def empty_routing(info: ModelInfo, count: int) -> Routing:
    """Arrays for ``count`` tokens, to be written to."""
    shape_MTK = (len(info.moe_layers), count, info.num_experts_per_tok)
    return Routing(
        layers=info.moe_layers,
        expert_ids=np.empty(shape_MTK, np.int64),
        expert_weights=np.empty(shape_MTK, np.float32),
    )


def part_of(routing: Routing, start: int, stop: int) -> Routing:
    """What was routed for tokens ``start`` to ``stop``: views."""
    return Routing(
        layers=routing.layers,
        expert_ids=routing.expert_ids[:, start:stop],
        expert_weights=routing.expert_weights[:, start:stop],
    )


class Chunk(NamedTuple):
    """Tokens that were computed together, and what was computed."""

    first: int  # position of the first
    tokens: list[int]
    hidden_TD: FloatArray  # after the final norm
    routing: Routing | None  # where somebody wants it

    def split(self, count: int) -> tuple[Chunk, Chunk]:
        """The first ``count`` tokens, and the others: views."""
        total = len(self.tokens)
        return (
            (self, NO_TOKENS)
            if count == total
            else (self._part(0, count), self._part(count, total))
        )

    def _part(self, start: int, stop: int) -> Chunk:
        return Chunk(
            self.first + start,
            self.tokens[start:stop],
            self.hidden_TD[start:stop],
            None if self.routing is None else part_of(self.routing, start, stop),
        )


NO_TOKENS = Chunk(0, [], np.empty((0, 0), np.float32), None)


@dataclass(frozen=True, kw_only=True)
class Step:
    """The results of one step: what was asked for."""

    logits: FloatArray  # [n,W] with n = T, 1 or 0
    hidden: FloatArray | None  # [T,D], after the final norm
    routing: Routing | None


def chunk_length(position: int, remaining: int, score_bytes: int) -> int:
    """Tokens to run at once from ``position``, so that attention scores stay small.

    Args:
        position: tokens in the cache.
        remaining: tokens still to be read.
        score_bytes: of one new token and one cached one; 0 where scores are not kept.
    """
    longest = min(remaining, LARGEST_CHUNK)
    if score_bytes == 0:
        return longest
    fitting = SCORE_BYTES // (score_bytes * (position + longest))
    return min(longest, max(SMALLEST_CHUNK, fitting))


class StepOutputs:
    """Arrays for everything that one step returns, filled chunk by chunk."""

    def __init__(
        self, info: ModelInfo, count: int, num_logits: int, *, hidden: bool, routing: bool
    ) -> None:
        try:
            self.logits = np.empty((num_logits, info.vocab_size), np.float32)
            self.hidden = np.empty((count, info.hidden_size), np.float32) if hidden else None
            self.routing = empty_routing(info, count) if routing else None
        except MemoryError as error:
            megabytes = num_logits * info.vocab_size * 4 / 1e6
            raise RuntimeFailure(
                f"context: no memory for the results of {count} tokens (logits take "
                f"{megabytes:.0f} MB); ask for fewer tokens at a time"
            ) from error
        self.count = count  # tokens of the step
        self.last_hidden = np.empty(info.hidden_size, np.float32)
