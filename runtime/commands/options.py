"""The options of the ``shoal`` command: one argparse parser, standard library only.

Each verb's are in options_VERB.py, beside its VERB_command.py. The parser is also the source of
docs/cli.md, which ``python -m shoal.runtime.commands.options`` prints.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass

from shoal.runtime.commands.options_bench import add_bench_options
from shoal.runtime.commands.options_common import (
    CommandParser,
    UsageFormatter,
    add_common_options,
)
from shoal.runtime.commands.options_doctor import add_doctor_options
from shoal.runtime.commands.options_eval import add_eval_options
from shoal.runtime.commands.options_export import add_export_options
from shoal.runtime.commands.options_inspect import add_inspect_options
from shoal.runtime.commands.options_pack import add_pack_options, add_unpack_options
from shoal.runtime.commands.options_run import add_run_options
from shoal.runtime.commands.options_verify import add_verify_options

# The command of optimum-cli, a distribution of its own, takes add_common_options from here.
__all__ = ["add_common_options", "build_parser", "version"]

DESCRIPTION = """\
Export DeepSeek-family checkpoints (MLA, MoE, MTP) to int8 ONNX bundles and run them on any CPU.

  shoal export checkpoints/tiny-v3 build/tiny      checkpoint -> bundle folder
  shoal run build/tiny --prompt "Once upon"        bundle -> text

The result goes to stdout, progress and speed to stderr. Exit status: 0 done, 1 it failed (one line
on stderr says why and what to do), 2 wrong usage, 130 stopped with Ctrl-C.
"""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb of the command."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]


VERBS = {
    "export": Verb(
        help="make a bundle from a checkpoint",
        add_options=add_export_options,
    ),
    "run": Verb(help="generate text, or chat when no prompt is given", add_options=add_run_options),
    "verify": Verb(
        help="check every byte of a bundle, and every weight against the checkpoint",
        add_options=add_verify_options,
    ),
    "inspect": Verb(
        help="say what a bundle or checkpoint is and what it needs, without running it",
        add_options=add_inspect_options,
    ),
    "eval": Verb(
        help="measure quality on texts and tasks, and closeness to a reference",
        add_options=add_eval_options,
    ),
    "bench": Verb(
        help="measure load time, prefill and decode speed, and memory",
        add_options=add_bench_options,
    ),
    "pack": Verb(
        help="put a bundle into one file to copy to a device", add_options=add_pack_options
    ),
    "unpack": Verb(help="make a bundle folder of such a file", add_options=add_unpack_options),
    "doctor": Verb(
        help="say what this machine and this installation can do",
        add_options=add_doctor_options,
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = CommandParser(
        prog="shoal", description=DESCRIPTION, formatter_class=UsageFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"shoal {version()}",
        help="show the version and exit",
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the whole traceback when something fails"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, verb in VERBS.items():
        own = verbs.add_parser(
            name, help=verb.help, formatter_class=UsageFormatter, allow_abbrev=False
        )
        verb.add_options(own)
        add_common_options(own)
    return parser


def version() -> str:
    """The version of the installed distribution."""
    return importlib.metadata.version("shoal")


if __name__ == "__main__":
    from shoal.runtime.commands.cli_page import cli_page

    sys.stdout.write(cli_page(build_parser()))
