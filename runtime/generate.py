"""The loop: context, sampler, stop conditions -> tokens, as they are decided."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from shoal.graphs.errors import InputError
from shoal.runtime.drafting.speculation import DraftStats, Speculation
from shoal.runtime.engine.context import Context, PrefillProgress
from shoal.runtime.engine.layer_state import too_long
from shoal.runtime.sampling.limits import check_count
from shoal.runtime.sampling.log_probs import TokenLogProbs, log_probs
from shoal.runtime.sampling.mask import Allowed
from shoal.runtime.sampling.options import SamplingOptions
from shoal.runtime.sampling.sampler import Sampler
from shoal.runtime.text.text_stream import StopFilter, TextStream
from shoal.runtime.text.tokenizer import Tokenizer

FinishReason = Literal["stop_token", "stop_string", "length", "context_full"]


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How a text is continued.

    Raises:
        InputError: a value out of range.
    """

    max_new_tokens: int | None = None  # None: until a stop condition or a full context
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    seed: int | None = None  # None: another result each time
    stop_tokens: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()  # texts
    logprobs: int | None = None  # keep log-probabilities, and those of so many tokens beside
    allowed: Allowed | None = None  # None: all tokens

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "seed", "logprobs"):
            check_count(name, getattr(self, name), optional=True)


class Generation(Iterator[int]):
    """The tokens of one answer, computed as they are asked for.

    Iterate over it for token ids, or over ``pieces()`` for text, but not over both. A stop token is
    not part of the answer; of a stop string the tokens are part of it, the text is not.

    Args:
        context: what is read into; the common prefix with ``ids`` is kept.
        ids: the whole prompt.
        options: how to continue it.
        vocab_size: of the model.
        tokenizer: needed for text and stop strings.
        progress: called while the prompt is read.
        speculation: decodes ``context`` with drafts; the tokens are the same.
    """

    def __init__(
        self,
        context: Context,
        ids: list[int],
        options: GenerateOptions,
        vocab_size: int,
        tokenizer: Tokenizer | None,
        progress: PrefillProgress | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        if len(ids) > context.max_length:
            raise too_long(len(ids), context.max_length)
        if options.stop and tokenizer is None:
            raise InputError("stop: stop strings need a tokenizer, this bundle has none")
        self.tokens: list[int] = []
        """The tokens decided so far."""
        self.prompt_tokens = len(ids)
        """Length of the prompt."""
        self.reused_tokens = 0
        """Tokens of the prompt that the context already held; known after the first new token."""
        self.finish_reason: FinishReason | None = None
        """Why the answer ended; None before it does."""
        self.stop_token: int | None = None
        """The stop token that ended the answer, if one did."""
        self.logprobs: list[TokenLogProbs] | None = None if options.logprobs is None else []
        """Log-probabilities of the tokens, if they were asked for."""
        self._context = context
        self._prompt = ids
        self._options = options
        self._progress = progress
        self._speculation = speculation
        self._sampler = Sampler(
            options.sampling, ids, vocab_size, seed=options.seed, allowed=options.allowed
        )
        self._stream = TextStream(tokenizer) if tokenizer is not None else None
        self._filter = StopFilter(options.stop)
        self._text = ""

    def __next__(self) -> int:
        """Decide one token."""
        options = self._options
        if self.finish_reason is None and len(self.tokens) == options.max_new_tokens:
            self.finish_reason = "length"
        if self.finish_reason is None and self._is_context_full():
            self.finish_reason = "context_full"
        if self.finish_reason is not None:
            raise self._end()
        logits_W = self._next_logits()
        token = self._sampler.choose(logits_W, self.tokens)
        if token in options.stop_tokens:
            self.finish_reason, self.stop_token = "stop_token", token
            raise self._end()
        if self.logprobs is not None:
            self.logprobs.append(log_probs(logits_W, token, options.logprobs or 0))
        self.tokens.append(token)
        if self._stream is not None:
            self._text += self._filter.push(self._stream.push(token))
            if self._filter.stopped:
                self.finish_reason = "stop_string"
        return token

    @property
    def draft_stats(self) -> DraftStats | None:
        """How drafting went, complete when the answer has ended; None without drafts."""
        return None if self._speculation is None else self._speculation.stats

    def pieces(self) -> Iterator[str]:
        """The answer as text, in pieces of whole characters, without any stop string.

        Raises:
            InputError: there is no tokenizer. Raised here, not with the first piece.
        """
        if self._stream is None:
            raise InputError("text: the bundle has no tokenizer; iterate over token ids instead")
        return self._pieces(self._stream)

    def _pieces(self, stream: TextStream) -> Iterator[str]:
        for _ in self:
            if self._text:
                yield self._take_text()
        self._text += self._filter.push(stream.finish()) + self._filter.finish()
        if self._text:
            yield self._take_text()

    def _take_text(self) -> str:
        text, self._text = self._text, ""
        return text

    def _end(self) -> StopIteration:
        if self._speculation is not None:
            self._speculation.finish_round()
        return StopIteration()

    def _is_context_full(self) -> bool:
        # The last token decided is read only when another one is wanted.
        return self.prompt_tokens + len(self.tokens) > self._context.max_length

    def _next_logits(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        if self.tokens:
            if self._context.position == self.prompt_tokens + len(self.tokens) - 1:
                return self._decode_last()
            # An interrupted step, or somebody else used the context in between.
            return self._context.switch_to(self._prompt + self.tokens)
        held = self._context.common_prefix(self._prompt)
        self.reused_tokens = min(held, self.prompt_tokens - 1)
        return self._context.switch_to(self._prompt, progress=self._progress)

    def _decode_last(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        if self._speculation is None:
            return self._context.decode(self.tokens[-1])
        limit = self._options.max_new_tokens
        most_drafts = None if limit is None else limit - len(self.tokens) - 1
        return self._speculation.decode(self.tokens[-1], most_drafts)
