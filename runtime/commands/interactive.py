"""The interactive form of ``shoal run``: a chat, or continued text for a base model."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress

from shoal.graphs.errors import ShoalError
from shoal.runtime.commands.answer_output import AnswerOutput, write_speed
from shoal.runtime.console.report import progress_line
from shoal.runtime.dialogue.dialogue import Dialogue

HELP = """\
/reset     forget everything said so far
/exit      leave (Ctrl-D too)
/help      this list
A backslash at the end of a line continues it on the next; a line of \"\"\" starts and ends a block.
Ctrl-C stops an answer."""

BASE_MODEL = """\
This bundle has no chat template (a base model): it continues your text instead of answering it.
Each text you type starts from scratch; an empty line continues the last one."""

_BLOCK = '"""'


def run_dialogue(dialogue: Dialogue) -> None:
    """Read turns from the terminal and answer them until /exit or Ctrl-D."""
    with suppress(ImportError):
        importlib.import_module("readline")  # line editing and history in input()
    model = dialogue.model
    progress_line(
        f"{model.manifest.model.model_type}, {model.manifest.weights} weights, {model.threads} "
        f"threads, {model.kernels} kernels. /help lists the commands, Ctrl-D leaves."
    )
    if not dialogue.chat:
        progress_line(BASE_MODEL if not model.has_chat_template else "Plain text is continued.")
    while (text := read_turn()) is not None:
        if text.startswith("/"):
            if not _obey(dialogue, text.strip()):
                break
        elif text.strip() or (not dialogue.chat and dialogue.messages):
            _answer(dialogue, text if text.strip() else "")


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
    output = AnswerOutput()
    try:
        answer, generation = dialogue.answer(text, output.write, output.prompt_read)
    except ShoalError as error:
        progress_line(f"error: {error} (/reset starts over)")
        return
    output.end()
    write_speed(answer, generation)
