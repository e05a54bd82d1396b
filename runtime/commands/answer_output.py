"""An answer of ``shoal run``: streamed to stdout, its speed summed up on stderr."""

from __future__ import annotations

import sys
import time

from shoal.runtime.console.report import progress_line
from shoal.runtime.console.streams import flush_result, write_result
from shoal.runtime.dialogue.answer import Answer
from shoal.runtime.generate import Generation
from shoal.runtime.units import format_rate

_SHOW_PROMPT_AFTER_S = 1.0
_REASONS = {
    "stop_token": "the model",
    "stop_string": "a text of --stop",
    "length": "--max-new-tokens",
    "context_full": "the end of the context",
}


class AnswerOutput:
    """Writes pieces to stdout; on a terminal, shows how much of a long prompt is read until then.

    Args:
        quiet: write no pieces: only a report goes to stdout.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._started_s = time.perf_counter()
        self._shows_prompt = False

    def prompt_read(self, done_tokens: int, total_tokens: int) -> None:
        """Show how much of the prompt is read when that takes long."""
        passed_s = time.perf_counter() - self._started_s
        if passed_s > _SHOW_PROMPT_AFTER_S and sys.stderr.isatty() and done_tokens < total_tokens:
            sys.stderr.write(f"\rreading the prompt: {100 * done_tokens // total_tokens} % ")
            sys.stderr.flush()
            self._shows_prompt = True

    def write(self, piece: str) -> None:
        """Write a piece of the answer."""
        self._clear()
        if not self._quiet:
            write_result(piece)
            flush_result()

    def end(self) -> None:
        """End the line of the answer, whether or not there was one."""
        self.write("\n")

    def _clear(self) -> None:
        if self._shows_prompt:
            sys.stderr.write("\r" + " " * 40 + "\r")
            self._shows_prompt = False


def write_speed(answer: Answer, generation: Generation) -> None:
    """One line on stderr: see ``describe_speed``."""
    progress_line(f"[{describe_speed(answer, generation)}]")


def describe_speed(answer: Answer, generation: Generation) -> str:
    """How fast the prompt was read and the answer written, and why it ended."""
    parts = [f"prompt: {generation.prompt_tokens} tokens"]
    if generation.reused_tokens:
        parts.append(f"{generation.reused_tokens} of them already in the context")
    if answer.first_token_s:
        parts.append(f"{format_rate(answer.prompt_tokens_per_s())} tokens/s")
        parts.append(f"first token after {answer.first_token_s * 1000:.0f} ms")
    new = f"new: {answer.new_tokens} tokens"
    if answer.new_tokens > 1:
        new += f", {format_rate(answer.new_tokens_per_s())} tokens/s"
    if generation.draft_stats is not None:
        new += f", {generation.draft_stats.tokens_per_step():.2f} tokens per step"
    ended = "Ctrl-C" if answer.interrupted else _REASONS.get(generation.finish_reason or "", "")
    return f"{', '.join(parts)}; {new}; ended by {ended or 'the model'}"
