"""The interactive form of ``shoal run``: a chat, or continued text for a base model.

Earlier turns stay in the latent cache: of each new prompt only what the context does not hold yet
is computed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from shoal.graphs.errors import ShoalError
from shoal.runtime.console.report import progress_line
from shoal.runtime.dialogue.answer import Answer, stream_answer, write_speed
from shoal.runtime.engine.context import Context
from shoal.runtime.generate import Generation
from shoal.runtime.model import Model

HELP = """\
/reset     forget everything said so far
/exit      leave (Ctrl-D too)
/help      this list
A line ending in a backslash goes on in the next one; a line of \"\"\" starts and ends a block.
Ctrl-C stops an answer."""

BASE_MODEL = """\
This bundle has no chat template (a base model): it continues your text instead of answering it.
Each text you type starts anew; an empty line lets the last one go on."""

_BLOCK = '"""'


class Dialogue:
    """What was said so far, and the context that holds it.

    Args:
        model: the open bundle.
        options: sampling options of ``Model.generate``.
        chat: put turns into the chat template; else continue plain text.
        system: system message of the chat.
        session: file that keeps the dialogue after each turn; plain text then goes on with each
            text instead of starting anew.
    """

    def __init__(
        self,
        model: Model,
        options: dict[str, Any],
        *,
        chat: bool,
        system: str | None = None,
        session: Path | None = None,
    ) -> None:
        self.model = model
        self.chat = chat
        self.session = session
        self._options = options
        self._system = system
        self.reset()

    def reset(self) -> None:
        """Forget everything said so far."""
        self._context = self.model.new_context()
        self._ids: list[int] = []
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})

    def go_on(self, context: Context, ids: list[int], messages: list[dict[str, str]]) -> None:
        """Take over what was said before: the context that holds it, its ids and its messages."""
        self._context, self._ids, self.messages = context, ids, messages

    def save(self) -> None:
        """Keep the dialogue in its file, if it has one.

        Raises:
            RuntimeFailure: it could not be written.
        """
        if self.session is not None:
            note = {"chat": self.chat, "ids": self._ids, "messages": self.messages}
            self._context.save(self.session, note)

    def answer(self, text: str, write: Callable[[str], object]) -> tuple[Answer, Generation]:
        """Answer a turn; a turn that fails leaves the dialogue as it was.

        Args:
            text: what the user typed; empty lets continued text go on.
            write: takes the pieces of the answer.

        Raises:
            InputError: the dialogue no longer fits into the context.
            RuntimeFailure: it could not be kept in its file.
        """
        turn = [*self.messages, {"role": "user", "content": text}]
        ids = self.model.chat_ids(turn) if self.chat else self._continued(text)
        answer, generation = stream_answer(self.model, ids, self._options, write, self._context)
        self._ids = [*ids, *generation.tokens]
        self.messages = [*turn, {"role": "assistant", "content": answer.text}]
        self.save()
        return answer, generation

    def _continued(self, text: str) -> list[int]:
        if not text:
            return self._ids
        if self.session is None or not self._ids:
            return self.model.encode(text)
        return [*self._ids, *self.model.encode(text, add_special_tokens=False)]


def run_dialogue(dialogue: Dialogue) -> int:
    """Read turns from the terminal and answer them until /exit or Ctrl-D."""
    with suppress(ImportError):
        importlib.import_module("readline")  # line editing and history in input()
    model = dialogue.model
    progress_line(
        f"{model.manifest.model.model_type}, {model.manifest.weights} weights, {model.threads} "
        f"threads, {model.kernels} kernels. /help lists what you can do, Ctrl-D leaves."
    )
    if not dialogue.chat:
        progress_line(BASE_MODEL if not model.has_chat_template else "Plain text is continued.")
    while (text := read_turn()) is not None:
        if text.startswith("/"):
            if not _obey(dialogue, text.strip()):
                break
        elif text.strip() or (not dialogue.chat and dialogue.messages):
            _answer(dialogue, text if text.strip() else "")
    return 0


def read_turn() -> str | None:
    """One turn, over several lines if the user wants; None at the end of input.

    Ctrl-C drops what was typed so far and starts again.
    """
    while True:
        try:
            return _read_lines()
        except KeyboardInterrupt:
            progress_line("\n(dropped; Ctrl-D or /exit leaves)")
        except EOFError:
            progress_line("")
            return None


def _read_lines() -> str:
    line = _input("> ")
    if line.strip() == _BLOCK:
        lines = []
        while (line := _input(". ")).strip() != _BLOCK:
            lines.append(line)
        return "\n".join(lines)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_input(". "))
    return "\n".join(lines)


def _input(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)  # stdout goes elsewhere and holds answers only
    sys.stderr.flush()
    return input()


def _obey(dialogue: Dialogue, command: str) -> bool:
    """Carry out a /command; False when it is time to leave."""
    if command == "/exit":
        return False
    if command == "/reset":
        dialogue.reset()
        dialogue.save()
        progress_line("(forgotten)")
    elif command == "/help":
        progress_line(HELP)
    else:
        progress_line(f"{command.split()[0]}: no such command; /help lists them")
    return True


def _answer(dialogue: Dialogue, text: str) -> None:
    try:
        answer, generation = dialogue.answer(text, _write_piece)
    except ShoalError as error:
        progress_line(f"error: {error} (/reset starts anew)")
        return
    _write_piece("\n")
    write_speed(answer, generation)


def _write_piece(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
