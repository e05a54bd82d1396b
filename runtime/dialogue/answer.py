"""One generated answer as data: its text as it comes, and how long that took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from shoal.runtime.engine.context import Context, PrefillProgress
from shoal.runtime.generate import Generation
from shoal.runtime.model import Model
from shoal.runtime.sampling.log_probs import TokenLogProbs

Write = Callable[[str], object]
"""Takes the pieces of an answer, each as soon as it is decided."""


@dataclass
class Answer:
    """What was generated and how long it took; filled in while it is generated."""

    started_s: float = field(default_factory=time.perf_counter)
    text: str = ""
    first_token_s: float = 0.0  # from the start until the prompt was read
    total_s: float = 0.0
    new_tokens: int = 0
    computed_tokens: int = 0  # prompt tokens that were not in the context already
    interrupted: bool = False
    logprobs: list[dict[str, Any]] | None = None  # JSON-ready, one for each token, if asked for

    def prompt_tokens_per_s(self) -> float:
        """Prompt tokens read per second."""
        return self.computed_tokens / max(self.first_token_s, 1e-9)

    def new_tokens_per_s(self) -> float:
        """Tokens per second after the first one, 0 if there was only one."""
        rest_s = self.total_s - self.first_token_s
        return max(0, self.new_tokens - 1) / rest_s if rest_s > 0 else 0.0


def stream_answer(
    model: Model,
    ids: list[int],
    options: dict[str, Any],
    write: Write,
    context: Context | None = None,
    progress: PrefillProgress | None = None,
) -> tuple[Answer, Generation]:
    """Generate and hand every piece of text to ``write`` as soon as it is decided.

    Args:
        model: the open bundle.
        ids: the whole prompt.
        options: of ``Model.generate``: sampling, stop texts, drafts.
        write: takes the pieces.
        context: keeps what it has in common with ``ids``, and the answer, for the next call.
        progress: called with prompt tokens read and prompt tokens in all.

    Returns:
        The timed answer and the finished generation. Ctrl-C ends the answer, not the program:
        it is returned as far as it got, marked as interrupted.
    """
    answer = Answer()

    def note_read(done_tokens: int, total_tokens: int) -> None:
        answer.first_token_s = time.perf_counter() - answer.started_s
        if progress is not None:
            progress(done_tokens, total_tokens)

    generation = model.generate(ids, context=context, progress=note_read, **options)
    try:
        for piece in generation.pieces():
            answer.text += piece
            write(piece)
    except KeyboardInterrupt:
        answer.interrupted = True
    answer.total_s = time.perf_counter() - answer.started_s
    answer.new_tokens = len(generation.tokens)
    answer.computed_tokens = generation.prompt_tokens - generation.reused_tokens
    if generation.logprobs is not None:
        answer.logprobs = [_logprob_report(model, found) for found in generation.logprobs]
    return answer, generation


def answer_report(answer: Answer, generation: Generation) -> dict[str, Any]:
    """The answer as JSON-ready values."""
    report = {
        "text": answer.text,
        "token_ids": list(generation.tokens),
        "prompt_tokens": generation.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "finish_reason": generation.finish_reason,
        "first_token_ms": answer.first_token_s * 1000,
        "prompt_tokens_per_s": answer.prompt_tokens_per_s(),
        "new_tokens_per_s": answer.new_tokens_per_s(),
        "drafts": None if generation.draft_stats is None else asdict(generation.draft_stats),
    }
    return report if answer.logprobs is None else report | {"logprobs": answer.logprobs}


def _logprob_report(model: Model, found: TokenLogProbs) -> dict[str, Any]:
    """A token's log-probabilities; tokens are told by their bytes, as some are half a character."""
    top = [_told(model, token, logprob) for token, logprob in found.top]
    return _told(model, found.token, found.logprob) | {"top_logprobs": top}


def _told(model: Model, token: int, logprob: float) -> dict[str, Any]:
    return {"token_id": token, "bytes": list(model.token_bytes(token)), "logprob": logprob}
