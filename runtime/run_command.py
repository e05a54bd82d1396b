"""``shoal run``: answer one prompt, or hand over to the interactive chat."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from shoal.graphs.errors import InputError
from shoal.runtime.answer import answer_report, sampling_options, stream_answer, write_speed
from shoal.runtime.interactive import Dialogue, run_dialogue
from shoal.runtime.model import Model, open_bundle
from shoal.runtime.report import progress_line, write_json


def run_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal run``."""
    interactive = args.prompt is None and sys.stdin.isatty()
    if interactive and args.json:
        raise InputError("run --json: expected a prompt, found a terminal; give --prompt TEXT")
    prompt = None if interactive else read_prompt(args.prompt)
    started_s = time.perf_counter()
    model = open_bundle(args.bundle, kernels=args.kernels, threads=args.threads)
    load_s = time.perf_counter() - started_s
    chat = wants_chat(args, model)
    if prompt is None:
        return run_dialogue(Dialogue(model, sampling_options(args), chat=chat, system=args.system))
    ids = model.chat_ids(first_messages(prompt, args.system)) if chat else model.encode(prompt)
    return _answer_once(args, model, prompt, ids, load_s)


def read_prompt(prompt: str | None) -> str:
    """The prompt from the command line or, without one, all of stdin less its last line break.

    Raises:
        InputError: the prompt is empty or is not UTF-8 text.
    """
    try:
        text = sys.stdin.read().removesuffix("\n") if prompt is None else prompt
        text.encode()
    except UnicodeError as error:
        where = "stdin" if prompt is None else "--prompt"
        raise InputError(f"{where}: expected UTF-8 text, found other bytes; convert it") from error
    if not text:
        where = "stdin" if prompt is None else "--prompt"
        raise InputError(f"{where}: expected a prompt, found nothing; give --prompt TEXT")
    return text


def wants_chat(args: argparse.Namespace, model: Model) -> bool:
    """True when prompts go through the chat template.

    Raises:
        InputError: a chat option was given but prompts are plain text.
    """
    has_template = model.has_chat_template
    if args.form == "chat" and not has_template:
        raise InputError(
            f"{args.bundle}: --chat needs a chat template, this bundle of a base model has none; "
            "leave --chat out to continue text"
        )
    chat = has_template if args.form is None else args.form == "chat"
    if args.system is not None and not chat:
        raise InputError(
            f"{args.bundle}: --system needs a chat, but the prompt is continued as plain text; "
            "put the instructions into the prompt"
        )
    return chat


def first_messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    """The messages a chat starts with."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": prompt}]


def _answer_once(
    args: argparse.Namespace, model: Model, prompt: str, ids: list[int], load_s: float
) -> int:
    if not args.json:
        progress_line(
            f"[opened in {load_s:.2f} s, {model.threads} threads, {model.kernels} kernels]"
        )
    write = _ignore if args.json else _write_piece
    answer, generation = stream_answer(model, ids, sampling_options(args), write)
    if args.json and not answer.interrupted:
        write_json(
            _machine_report(args, model, load_s)
            | {"prompt": prompt}
            | answer_report(answer, generation)
        )
    if not args.json:
        _write_piece("\n")
        write_speed(answer, generation)
    if answer.interrupted:
        raise KeyboardInterrupt
    return 0


def _machine_report(args: argparse.Namespace, model: Model, load_s: float) -> dict[str, Any]:
    return {
        "bundle": str(args.bundle),
        "kernels": model.kernels,
        "threads": model.threads,
        "load_ms": load_s * 1000,
    }


def _write_piece(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _ignore(piece: str) -> None:
    """With --json nothing but the report goes to stdout."""
