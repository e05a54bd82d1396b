"""How a token is chosen: the options and their limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shoal.graphs.errors import InputError
from shoal.runtime.sampling.bias import LogitBias, read_bias
from shoal.runtime.sampling.limits import check_count, check_number

MOST_PENALTY = 2.0
"""Of presence and frequency, to either side."""

MOST_REPETITION = 100.0
"""Factor of the repetition penalty; the least is its inverse."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a token is chosen.

    Raises:
        InputError: a value out of range.
    """

    temperature: float = 0.0  # 0: the most probable token, whatever the three below say
    top_k: int = 0  # keep this many most probable tokens; 0: all
    top_p: float = 1.0  # keep the fewest tokens whose probabilities add up to this; 1: all
    min_p: float = 0.0  # keep tokens at least this fraction as probable as the best one; 0: all
    presence_penalty: float = 0.0  # subtracted from logits of tokens in the answer
    frequency_penalty: float = 0.0  # subtracted for each time that a token is in the answer
    repetition_penalty: float = 1.0  # divides logits of tokens in the prompt or answer; 1: none
    logit_bias: LogitBias = field(default_factory=dict[int, float])  # added, by token id

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0.0, math.inf)
        check_number("top_p", self.top_p, 0.0, 1.0)
        check_number("min_p", self.min_p, 0.0, 1.0)
        check_count("top_k", self.top_k)
        if self.top_p == 0:
            raise InputError("top_p must be more than 0; use temperature 0 for the best token")
        check_number("presence_penalty", self.presence_penalty, -MOST_PENALTY, MOST_PENALTY)
        check_number("frequency_penalty", self.frequency_penalty, -MOST_PENALTY, MOST_PENALTY)
        repetition, most = self.repetition_penalty, MOST_REPETITION
        check_number("repetition_penalty", repetition, 1 / most, most)
        read_bias(self.logit_bias)

    @property
    def has_penalties(self) -> bool:
        """Whether it matters what was said before."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0, 0, 1)
