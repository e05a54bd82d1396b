"""What choosing a token costs beside computing it, on one core.

It grows with the vocabulary only, so random logits of the model's size and of a large one will do.
Processor time counts, which other programs change little, and the least of the repeats.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from shoal.runtime.bench.timing import Say, say_nothing
from shoal.runtime.sampling.log_probs import log_probs
from shoal.runtime.sampling.options import SamplingOptions
from shoal.runtime.sampling.sampler import Sampler

LARGE_VOCABULARY = 129_280
"""Entries, as DeepSeek-V3 has them."""

_TOKENS = 32  # chosen per repeat
_HISTORY = 300  # tokens of the prompt, and of the answer
_SPREAD = 3.0  # of logits: thousands of tokens make 0.95 of the probability, a hard case for top_p

_DRAW: dict[str, Any] = {"temperature": 1.0}
_PENALTIES: dict[str, Any] = {
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
    "logit_bias": dict.fromkeys(range(16), 1.0),
}
_TOP: dict[str, Any] = {"top_k": 40, "top_p": 0.95, "min_p": 0.01}
_FORMS: tuple[tuple[str, dict[str, Any], int | None], ...] = (
    ("temperature 0", {}, None),
    ("temperature 1", _DRAW, None),
    ("top_p", _DRAW | {"top_p": 0.95}, None),
    ("top_k, top_p, min_p", _DRAW | _TOP, None),
    ("everything", _DRAW | _TOP | _PENALTIES, 20),
)


def measure_sampling(vocab_size: int, repeats: int, say: Say = say_nothing) -> list[dict[str, Any]]:
    """Cost of choosing a token.

    Args:
        vocab_size: of the model.
        repeats: measurements per figure, of which the least counts.
        say: told what is measured next.

    Returns:
        For each form and size: form, vocab_size, ms_per_token. "everything" is penalties, bias, a
        mask, top-k, top-p, min-p and log-probabilities of the 20 most probable tokens.
    """
    rows = []
    for size in sorted({vocab_size, LARGE_VOCABULARY}):
        say(f"sampling of {size} tokens")
        for form, options, logprobs in _FORMS:
            ms = _least_ms(size, options, logprobs, repeats)
            rows.append({"form": form, "vocab_size": size, "ms_per_token": ms})
    return rows


def _least_ms(size: int, options: dict[str, Any], logprobs: int | None, repeats: int) -> float:
    generator = np.random.default_rng(0)
    logits_W = generator.normal(0, _SPREAD, size).astype(np.float32)
    prompt, answer = generator.integers(0, size, (2, _HISTORY)).tolist()
    allowed = None if logprobs is None else np.arange(size) % 8 != 0
    sampler = Sampler(SamplingOptions(**options), prompt, size, seed=0, allowed=allowed)
    seconds = []
    for _ in range(repeats + 1):
        started_s = time.thread_time()
        for _ in range(_TOKENS):
            token = sampler.choose(logits_W, answer)
            if logprobs is not None:
                log_probs(logits_W, token, logprobs)
        seconds.append(time.thread_time() - started_s)
    return min(seconds[1:]) / _TOKENS * 1000
