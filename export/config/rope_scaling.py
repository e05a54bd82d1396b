"""How rotary frequencies are stretched to longer contexts: YaRN and LongRoPE.

Source: YaRN (arXiv 2309.00071), section 3; LongRoPE (arXiv 2402.13753), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from shoal.export.config.values import ConfigReader, is_number

_LEAST_BETA = 1e-6  # rotations
_LEAST_FACTOR = 1e-12  # its reciprocal is a float32 number


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's temperature for a context stretched ``factor`` times: 0.1 mscale ln(factor) + 1.

    Source: YaRN (arXiv 2309.00071), section 3.4; DeepSeek-V2 adds the ``mscale`` weight.
    """
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN: high frequencies stay, low ones are divided by a factor, with a ramp between."""

    factor: float  # how many times longer
    original_max_position_embeddings: int  # tokens, before stretching
    beta_fast: float  # rotations over the original context above which nothing changes
    beta_slow: float  # rotations below which a frequency is divided by factor
    mscale: float | None
    mscale_all_dim: float | None
    truncate: bool  # round the borders of the ramp to whole dimensions
    attention_factor: float | None  # of cos and sin; None: from factor and the mscales

    @property
    def cos_sin_factor(self) -> float:
        """What cos and sin are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return yarn_mscale(self.factor, self.mscale) / yarn_mscale(
                self.factor, self.mscale_all_dim
            )
        return yarn_mscale(self.factor, 1.0)

    @property
    def softmax_factor(self) -> float:
        """What the attention scores are multiplied by, beside 1/sqrt(head size)."""
        if not self.mscale_all_dim:
            return 1.0
        return yarn_mscale(self.factor, self.mscale_all_dim) ** 2


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE: every frequency has a divisor of its own, one for short and one for long contexts.

    Which of the two holds depends on the last position of a call, as in transformers: rows that
    are in the cache already keep the rotation they were written with.
    """

    short_factor: tuple[float, ...]  # one for each pair
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int  # tokens; beyond them the context is long
    factor: float  # how many times longer the model's context is
    attention_factor: float | None  # of cos and sin; None: from factor

    @property
    def cos_sin_factor(self) -> float:
        """What cos and sin are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        return math.sqrt(
            1 + math.log(self.factor) / math.log(self.original_max_position_embeddings)
        )

    @property
    def softmax_factor(self) -> float:
        """What the attention scores are multiplied by, beside 1/sqrt(head size)."""
        return 1.0


def read_yarn(rope: ConfigReader, context: int) -> YarnScaling:
    """YaRN's keys of a ``rope_parameters`` table; ``context`` is max_position_embeddings."""
    original = rope.integer("original_max_position_embeddings", null=True) or context
    if original < 1:
        rope.refuse("original_max_position_embeddings", "at least 1", original)
        original = 1
    factor = rope.number("factor", null=True)
    fields: dict[str, Any] = {
        "factor": context / original if factor is None else factor,
        "original_max_position_embeddings": original,
        "beta_fast": rope.number("beta_fast", null=True) or 32.0,
        "beta_slow": rope.number("beta_slow", null=True) or 1.0,
        "mscale": rope.number("mscale", null=True),
        "mscale_all_dim": rope.number("mscale_all_dim", null=True),
        "truncate": rope.flag("truncate"),
        "attention_factor": rope.number("attention_factor", null=True),
    }
    if not fields["factor"] >= 1:
        rope.refuse("factor", "a number of at least 1", fields["factor"])
    if not _LEAST_BETA <= fields["beta_slow"] <= fields["beta_fast"]:
        rope.refuse(
            "beta_slow",
            f"{_LEAST_BETA} up to beta_fast {fields['beta_fast']}",
            fields["beta_slow"],
        )
    for key in ("mscale", "mscale_all_dim", "attention_factor"):
        if fields[key] is not None and fields[key] < 0:
            rope.refuse(key, "at least 0", fields[key])
    return YarnScaling(**fields)


def read_longrope(rope: ConfigReader, context: int, num_pairs: int) -> LongRopeScaling:
    """LongRoPE's keys of a ``rope_parameters`` table.

    Args:
        rope: The table.
        context: max_position_embeddings.
        num_pairs: Of a rotary key, half of qk_rope_head_dim.
    """
    original = rope.integer("original_max_position_embeddings")
    if original is None or original < 2:
        rope.refuse("original_max_position_embeddings", "at least 2", original)
        original = 2
    factor = rope.number("factor", null=True)
    return LongRopeScaling(
        short_factor=_factors(rope, "short_factor", num_pairs),
        long_factor=_factors(rope, "long_factor", num_pairs),
        original_max_position_embeddings=original,
        factor=context / original if factor is None else factor,
        attention_factor=rope.number("attention_factor", null=True),
    )


def _factors(rope: ConfigReader, key: str, count: int) -> tuple[float, ...]:
    found = rope.take(key)
    valid = isinstance(found, list) and len(found) == count
    if not valid or not all(is_number(value) and value > _LEAST_FACTOR for value in found):
        rope.refuse(key, f"{count} numbers above 0, half of qk_rope_head_dim", found)
        return ()  # not as many as announced, which may be any number
    return tuple(float(value) for value in found)
