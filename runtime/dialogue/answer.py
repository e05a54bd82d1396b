"""One generated answer on the command line: streamed to stdout, timed, summed up on stderr."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from shoal.runtime.console.report import progress_line
from shoal.runtime.engine.context import Context
from shoal.runtime.generate import Generation
from shoal.runtime.model import Model
from shoal.runtime.units import format_rate

_SHOW_PROMPT_AFTER_S = 1.0


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

    def prompt_tokens_per_s(self) -> float:
        """Prompt tokens read per second."""
        return self.computed_tokens / max(self.first_token_s, 1e-9)

    def new_tokens_per_s(self) -> float:
        """Tokens per second after the first one, 0 if there was only one."""
        rest_s = self.total_s - self.first_token_s
        return max(0, self.new_tokens - 1) / rest_s if rest_s > 0 else 0.0


def machine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a verb that ``open_bundle`` takes."""
    return {
        "kernels": args.kernels,
        "threads": args.threads,
        "cache": args.cache,
        "max_context": args.max_context,
        "max_memory": args.max_memory,
    }


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of ``shoal run`` that ``Model.generate`` takes."""
    return {
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "seed": args.seed,
        "stop": tuple(args.stop),
        "draft": args.draft,
    }


def stream_answer(
    model: Model,
    ids: list[int],
    options: dict[str, Any],
    write: Callable[[str], object],
    context: Context | None = None,
) -> tuple[Answer, Generation]:
    """Generate and hand every piece of text to ``write`` as soon as it is decided.

    Args:
        model: the open bundle.
        ids: the whole prompt.
        options: see ``sampling_options``.
        write: takes the pieces.
        context: keeps what it has in common with ``ids``, and the answer, for the next call.

    Returns:
        The timed answer and the finished generation. Ctrl-C ends the answer, not the program:
        it is returned as far as it got, marked as interrupted.
    """
    answer = Answer()
    progress = _PromptProgress(answer)
    generation = model.generate(ids, context=context, progress=progress, **options)
    try:
        for piece in generation.pieces():
            progress.clear()
            answer.text += piece
            write(piece)
    except KeyboardInterrupt:
        answer.interrupted = True
    progress.clear()
    answer.total_s = time.perf_counter() - answer.started_s
    answer.new_tokens = len(generation.tokens)
    answer.computed_tokens = generation.prompt_tokens - generation.reused_tokens
    return answer, generation


class _PromptProgress:
    """Notes when the prompt has been read; shows a share on a terminal when that takes long."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._shown = False

    def __call__(self, done_tokens: int, total_tokens: int) -> None:
        passed_s = time.perf_counter() - self._answer.started_s
        self._answer.first_token_s = passed_s
        if passed_s > _SHOW_PROMPT_AFTER_S and sys.stderr.isatty() and done_tokens < total_tokens:
            sys.stderr.write(f"\rreading the prompt: {100 * done_tokens // total_tokens} % ")
            sys.stderr.flush()
            self._shown = True

    def clear(self) -> None:
        """Remove the line again."""
        if self._shown:
            sys.stderr.write("\r" + " " * 40 + "\r")
            self._shown = False


def write_speed(answer: Answer, generation: Generation) -> None:
    """One line on stderr: how fast the prompt was read and the answer written, and why it ended."""
    parts = [f"prompt: {generation.prompt_tokens} tokens"]
    if generation.reused_tokens:
        parts.append(f"{generation.reused_tokens} of them still in the context")
    if answer.first_token_s:
        parts.append(f"{format_rate(answer.prompt_tokens_per_s())} tokens/s")
        parts.append(f"first token after {answer.first_token_s * 1000:.0f} ms")
    new = f"new: {answer.new_tokens} tokens"
    if answer.new_tokens > 1:
        new += f", {format_rate(answer.new_tokens_per_s())} tokens/s"
    if generation.draft_stats is not None:
        new += f", {generation.draft_stats.tokens_per_step():.2f} tokens per step"
    ended = "Ctrl-C" if answer.interrupted else _REASONS.get(generation.finish_reason or "", "")
    progress_line(f"[{', '.join(parts)}; {new}; ended by {ended or 'the model'}]")


_REASONS = {
    "stop_token": "the model",
    "stop_string": "a stop text",
    "length": "--max-new-tokens",
    "context_full": "the end of the context",
}


def answer_report(answer: Answer, generation: Generation) -> dict[str, Any]:
    """The answer as JSON-ready values."""
    return {
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
