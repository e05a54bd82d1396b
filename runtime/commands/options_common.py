"""Options that several verbs take, and how their help is laid out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from shoal.graphs.cache_types import CACHE_TYPES
from shoal.graphs.message_length import bounded
from shoal.runtime.commands.option_types import access_token, byte_count, positive_int, utf8_text
from shoal.runtime.console.streams import write_result
from shoal.runtime.console.visible import visible


class CommandParser(argparse.ArgumentParser):
    """Repeats arguments, which may be names of files from anywhere, so that terminals can show."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and end."""
        super().error(bounded(visible(message)))

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help; argparse itself would say nothing of a stdout that refuses it."""
        if file is sys.stdout:
            write_result(message)
        else:
            super()._print_message(message, file)


class UsageFormatter(argparse.HelpFormatter):
    """Wraps running text, keeps texts that bring their own line breaks, as examples do."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=100)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


def add_common_options(verb: argparse.ArgumentParser) -> None:
    """Add what every verb takes."""
    verb.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    verb.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,  # keeps a --debug given before the verb
        help="show the whole traceback when something fails",
    )


def add_bundle(verb: argparse.ArgumentParser) -> None:
    """Add the bundle that a verb works on."""
    verb.add_argument("bundle", metavar="BUNDLE", type=Path, help="bundle folder")


def add_machine_options(verb: argparse.ArgumentParser) -> None:
    """Add what decides how a bundle runs on this machine."""
    group = verb.add_argument_group("machine")
    group.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="threads to compute with (default: one per big core)",
    )
    group.add_argument(
        "--kernels",
        choices=("auto", "native", "portable"),
        default="auto",
        help="form of the ops: native needs compiled kernels, portable only onnxruntime, "
        "auto takes native where it is available (default: auto)",
    )
    group.add_argument(
        "--cache",
        choices=CACHE_TYPES,
        default="float32",
        help="type of the latent cache: float16 takes half the memory, int8 less than a third "
        "(default: float32)",
    )
    group.add_argument(
        "--max-context",
        type=positive_int,
        metavar="N",
        help="tokens a context may hold; refused at once if that does not fit into memory "
        "(default: as many as the model can read)",
    )
    group.add_argument(
        "--max-memory",
        type=byte_count,
        metavar="SIZE",
        help="memory to use beside the mapped weights, such as 800M or 2G; limits the length of "
        "contexts unless --max-context is given (default: what the machine has)",
    )


def add_hub_options(verb: argparse.ArgumentParser) -> None:
    """Add what fetching a checkpoint from the Hugging Face Hub takes."""
    group = verb.add_argument_group("Hugging Face Hub")
    group.add_argument(
        "--revision",
        type=utf8_text,
        metavar="NAME",
        help="branch, tag or commit (default: the main branch)",
    )
    group.add_argument(
        "--token",
        type=access_token,
        metavar="TEXT",
        help="access token, for models that are not public (default: HF_TOKEN or a login)",
    )
