"""The sampler of one answer: options, what was said so far, and random numbers -> tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shoal.runtime.sampling.bias import add_bias, check_ids, read_bias
from shoal.runtime.sampling.draw import check_logits, choose_token
from shoal.runtime.sampling.mask import Allowed, apply_mask, check_mask
from shoal.runtime.sampling.options import SamplingOptions
from shoal.runtime.sampling.penalties import penalise_occurrence, penalise_repetition


class Sampler:
    """Chooses the tokens of one answer.

    Args:
        options: how to choose.
        prompt: its token ids.
        vocab_size: of the model.
        seed: makes choices repeatable.
        allowed: which tokens may come; None for all.

    Raises:
        InputError: a bias or a mask is not for this vocabulary.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompt: Sequence[int],
        vocab_size: int,
        *,
        seed: int | None = None,
        allowed: Allowed | None = None,
    ) -> None:
        self._options = options
        self._vocab_size = vocab_size
        self._random = np.random.default_rng(seed)
        self._bias = read_bias(options.logit_bias)
        check_ids(self._bias, vocab_size)
        self._allowed = allowed
        if allowed is not None and not callable(allowed):
            check_mask(allowed, vocab_size)
        self._counted = 0  # tokens of the answer that are in the two below
        if options.has_penalties:
            self._seen_W = np.zeros(vocab_size, np.bool_)  # in the prompt or the answer
            self._seen_W[list(prompt)] = True
            self._counts_W = np.zeros(vocab_size, np.float32)  # in the answer

    def choose(self, logits_W: npt.NDArray[np.float32], tokens: Sequence[int]) -> int:
        """Choose the next token; the random number it takes does not depend on the options.

        Args:
            logits_W: of the model, float32 [W]; they stay as they are.
            tokens: of the answer so far.

        Raises:
            InputError: a mask is none, or leaves no token.
            RuntimeFailure: the logits are damaged.
        """
        return choose_token(self._adjusted(logits_W, tokens), self._options, self._random)

    def _adjusted(
        self, logits_W: npt.NDArray[np.float32], tokens: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Logits with bias, penalties and mask; the same array if there are none of these."""
        options = self._options
        if not self._bias and not options.has_penalties and self._allowed is None:
            return logits_W
        check_logits(logits_W)
        adjusted_W = logits_W.copy()
        if self._bias:
            add_bias(adjusted_W, self._bias)
        if options.has_penalties:
            self._count(tokens)
            penalise_repetition(adjusted_W, self._seen_W, float(options.repetition_penalty))
            penalise_occurrence(
                adjusted_W,
                self._counts_W,
                frequency=float(options.frequency_penalty),
                presence=float(options.presence_penalty),
            )
        if self._allowed is not None:
            allowed = self._allowed(tokens) if callable(self._allowed) else self._allowed
            apply_mask(adjusted_W, check_mask(allowed, self._vocab_size))
        return adjusted_W

    def _count(self, tokens: Sequence[int]) -> None:
        """Take note of the tokens that have been decided since the last time."""
        for token in tokens[self._counted :]:
            self._counts_W[token] += 1
            self._seen_W[token] = True
        self._counted = len(tokens)
