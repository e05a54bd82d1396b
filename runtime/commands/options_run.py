"""The options of ``shoal run``."""

from __future__ import annotations

import argparse
from pathlib import Path

from shoal.runtime.commands.option_types import (
    draft_length,
    logprob_count,
    non_negative_float,
    non_negative_int,
    penalty,
    positive_int,
    probability,
    probability_or_zero,
    repetition_penalty,
    token_bias,
    utf8_text,
)
from shoal.runtime.commands.options_common import add_bundle, add_machine_options

DEFAULT_NEW_TOKENS = 256


def add_run_options(verb: argparse.ArgumentParser) -> None:
    """Set what ``shoal run`` takes."""
    verb.description = (
        "Generate text. With --prompt, or with text piped to stdin: answer once. On a terminal "
        "without --prompt: a chat with history; /help lists its commands. Text goes to stdout as "
        "it is generated, speed to stderr. Decoding is greedy unless --temperature is given; the "
        "sampling settings of a generation_config.json are not applied."
    )
    verb.epilog = (
        "examples:\n"
        '  shoal run build/tiny --prompt "It is a truth universally acknowledged, that"\n'
        "  shoal run build/tiny --temperature 0.8 --top-p 0.95 --seed 7 < prompt.txt"
    )
    add_bundle(verb)
    _add_generation(verb)
    _add_requests(verb)
    _add_sampling(verb.add_argument_group("sampling"))
    _add_penalties(verb.add_argument_group("before sampling"))
    _add_prompt_format(verb.add_argument_group("prompt format"))
    add_machine_options(verb)


def _add_generation(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--prompt", metavar="TEXT", help="text to answer or to continue")
    verb.add_argument(
        "--max-new-tokens",
        type=positive_int,
        default=DEFAULT_NEW_TOKENS,
        metavar="N",
        help=f"stop after N tokens (default: {DEFAULT_NEW_TOKENS})",
    )
    verb.add_argument(
        "--draft",
        type=draft_length,
        default=0,
        metavar="N|auto",
        help="tokens that the multi-token-prediction module drafts for each step: the same text "
        "in fewer steps; auto drafts as many as pay off (default: 0)",
    )


def _add_requests(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--session",
        metavar="FILE",
        type=Path,
        help="keep the dialogue in this file; if the file exists, continue the dialogue in it",
    )
    verb.add_argument(
        "--loop",
        action="store_true",
        help="answer each line of stdin, or each JSON object with --json (docs/service.md)",
    )
    verb.add_argument(
        "--listen",
        metavar="ADDRESS",
        help="like --loop, for lines that arrive through a socket: a path such as ./shoal.sock, or "
        "HOST:PORT of a loopback address",
    )
    verb.add_argument(
        "--cap-new-tokens",
        type=positive_int,
        metavar="N",
        help="with --loop or --listen: the most new tokens that a request may ask for (default: as "
        "many as the context holds)",
    )
    verb.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say on stderr which kernels run, with how many threads and how much memory",
    )


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--temperature",
        type=non_negative_float,
        default=0.0,
        metavar="X",
        help="0 always takes the most likely token; 1 samples as trained (default: 0)",
    )
    group.add_argument(
        "--top-k",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="sample among the N most likely tokens (default: 0, all)",
    )
    group.add_argument(
        "--top-p",
        type=probability,
        default=1.0,
        metavar="X",
        help="sample among the most likely tokens whose probabilities add up to X "
        "(default: 1, all)",
    )
    group.add_argument(
        "--min-p",
        type=probability_or_zero,
        default=0.0,
        metavar="X",
        help="drop tokens less likely than X times the most likely one (default: 0, none)",
    )
    group.add_argument(
        "--seed",
        type=non_negative_int,
        metavar="N",
        help="makes sampling repeatable (default: none)",
    )
    group.add_argument(
        "--stop",
        type=utf8_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer before this text; may be given several times",
    )


def _add_penalties(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--presence-penalty",
        type=penalty,
        default=0.0,
        metavar="X",
        help="subtract X from the logits of tokens that are in the answer, -2 to 2 (default: 0)",
    )
    group.add_argument(
        "--frequency-penalty",
        type=penalty,
        default=0.0,
        metavar="X",
        help="subtract X for each time that a token is in the answer, -2 to 2 (default: 0)",
    )
    group.add_argument(
        "--repetition-penalty",
        type=repetition_penalty,
        default=1.0,
        metavar="X",
        help="divide positive logits of tokens in the prompt or the answer by X and multiply "
        "negative ones (default: 1)",
    )
    group.add_argument(
        "--logit-bias",
        type=token_bias,
        action="append",
        default=[],
        metavar="ID=X",
        help="add X, from -100 to 100, to the logit of a token; may be given several times",
    )
    group.add_argument(
        "--logprobs",
        type=logprob_count,
        metavar="N",
        help="with --json: report the log-probability that the model gave each token, and those of "
        "the N most likely ones, at most 20",
    )


def _add_prompt_format(group: argparse._ArgumentGroup) -> None:
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--chat",
        dest="form",
        action="store_const",
        const="chat",
        help="put the prompt into the model's chat template (default when the bundle has one)",
    )
    form.add_argument(
        "--raw",
        dest="form",
        action="store_const",
        const="raw",
        help="continue the prompt as plain text (default when the bundle has no chat template)",
    )
    group.add_argument(
        "--system", type=utf8_text, metavar="TEXT", help="system message of the chat"
    )
