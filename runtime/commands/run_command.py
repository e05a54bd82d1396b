"""``shoal run``: answer one prompt, or hand over to the interactive chat."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from shoal.graphs.errors import InputError
from shoal.graphs.footprint import bundle_cache_token_bytes
from shoal.graphs.input_files import LONGEST_TEXT, decode_text, strip_mark
from shoal.runtime.atomic_file import check_place
from shoal.runtime.commands.answer_output import AnswerOutput, describe_speed, write_speed
from shoal.runtime.commands.interactive import run_dialogue
from shoal.runtime.commands.option_values import machine_options, sampling_options
from shoal.runtime.commands.verbose import write_memory, write_opened
from shoal.runtime.console.report import progress_line, write_json
from shoal.runtime.console.streams import is_closed
from shoal.runtime.console.visible import visible
from shoal.runtime.dialogue.answer import answer_report
from shoal.runtime.dialogue.dialogue import Dialogue
from shoal.runtime.dialogue.saved_dialogue import open_dialogue
from shoal.runtime.model import Model
from shoal.runtime.opening import open_bundle
from shoal.runtime.server.line_requests import LineRequests
from shoal.runtime.server.loop import run_loop
from shoal.runtime.server.termination import leave
from shoal.runtime.units import format_bytes


def run_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal run``."""
    loops = args.loop or args.listen is not None
    if loops and args.prompt is not None:
        raise InputError("run --loop: expected prompts line by line, found --prompt; leave it out")
    if args.cap_new_tokens is not None:
        if not loops:
            raise InputError("run --cap-new-tokens: expected --loop or --listen; give one of them")
        args.max_new_tokens = min(args.max_new_tokens, args.cap_new_tokens)
    if args.logprobs is not None and not args.json:
        raise InputError("run --logprobs: only --json can show them; give it too")
    if args.loop and args.listen is None and is_closed(sys.stdin):
        raise InputError("run --loop: stdin is closed; send lines to it, or listen with --listen")
    interactive = args.prompt is None and sys.stdin.isatty() and not loops
    if interactive and args.json:
        raise InputError("run --json: expected a prompt, found a terminal; give --prompt TEXT")
    if args.session is not None:
        check_place(args.session, "the session")
    prompt = None if interactive or loops else read_prompt(args.prompt)
    started_s = time.perf_counter()
    model = open_bundle(args.bundle, **machine_options(args))
    load_s = time.perf_counter() - started_s
    if args.verbose:
        write_opened(model, load_s)
    stopped = False
    with _open_dialogue(args, model) as dialogue:
        if loops:
            show = _shown if sys.stdout.isatty() else bytes
            stopped = run_loop(_line_requests(args, dialogue), args.listen, progress_line, show)
        elif prompt is None:
            run_dialogue(dialogue)
        else:
            _answer_once(args, dialogue, prompt, load_s)
    if stopped:
        leave()
    return 0


def _shown(answer: bytes) -> bytes:
    return visible(answer.decode(errors="replace")).encode()


def _open_dialogue(args: argparse.Namespace, model: Model) -> AbstractContextManager[Dialogue]:
    options, chat = sampling_options(args), wants_chat(args, model)
    if args.session is None:
        return nullcontext(Dialogue(model, options, chat=chat, system=args.system))
    return open_dialogue(model, options, args.session, chat=chat, system=args.system)


def _line_requests(args: argparse.Namespace, dialogue: Dialogue) -> LineRequests:
    return LineRequests(
        dialogue.model,
        sampling_options(args),
        chat=dialogue.chat,
        system=args.system,
        as_json=args.json,
        most_new_tokens=args.cap_new_tokens,
        dialogue=None if args.session is None else dialogue,
        log=progress_line,
        describe=describe_speed,
    )


def read_prompt(prompt: str | None) -> str:
    """The prompt from the command line or, without one, all of stdin less its last line break.

    Raises:
        InputError: the prompt is empty, too long or not UTF-8 text.
    """
    where = "stdin" if prompt is None else "--prompt"
    try:
        text = _read_stdin().removesuffix("\n") if prompt is None else strip_mark(prompt)
        text.encode()
    except UnicodeError as error:
        raise InputError(f"{where}: expected UTF-8 text, found other bytes; convert it") from error
    if not text:
        raise InputError(f"{where}: expected a prompt, found nothing; give --prompt TEXT")
    return text


def _read_stdin() -> str:
    try:
        content = sys.stdin.buffer.read(LONGEST_TEXT + 1) or b""
    except OSError as error:
        raise InputError(
            f"stdin: cannot be read ({error.strerror or error}); give --prompt TEXT"
        ) from error
    if len(content) > LONGEST_TEXT:
        raise InputError(
            f"stdin: expected a prompt of at most {LONGEST_TEXT} bytes, found more; shorten it"
        )
    return decode_text(content).replace("\r\n", "\n").replace("\r", "\n")


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


def _answer_once(args: argparse.Namespace, dialogue: Dialogue, prompt: str, load_s: float) -> None:
    model = dialogue.model
    if not args.json and not args.verbose:
        progress_line(
            f"[opened in {load_s:.2f} s, {model.threads} threads, {model.kernels} kernels, "
            f"{model.cache_type} cache of {format_bytes(token_bytes(model))} per token]"
        )
    output = AnswerOutput(quiet=args.json)
    answer, generation = dialogue.answer(prompt, output.write, output.prompt_read)
    output.end()
    if not args.json:
        write_speed(answer, generation)
    elif not answer.interrupted:
        write_json(
            _machine_report(args, model, load_s)
            | {"prompt": prompt}
            | answer_report(answer, generation)
        )
    if args.verbose:
        write_memory()
    if answer.interrupted:
        raise KeyboardInterrupt


def _machine_report(args: argparse.Namespace, model: Model, load_s: float) -> dict[str, Any]:
    return {
        "bundle": str(args.bundle),
        "kernels": model.kernels,
        "threads": model.threads,
        "cache": model.cache_type,
        "cache_token_bytes": token_bytes(model),
        "load_ms": load_s * 1000,
    }


def token_bytes(model: Model) -> int:
    """Latent cache of one token."""
    return bundle_cache_token_bytes(model.manifest.model, model.cache_type)
