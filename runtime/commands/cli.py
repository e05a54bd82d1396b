"""The console command ``shoal``: verbs, lazy imports, exit codes.

0    done
1    it failed: one line ``error: ...`` on stderr, a traceback only with --debug
2    wrong usage
130  stopped with Ctrl-C
141  whoever read our output went away (as if SIGPIPE had ended us)
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from shoal.graphs.errors import ShoalError
from shoal.runtime.commands.options import build_parser

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 0, 1, 2, 130, 141

Command = Callable[[argparse.Namespace], int]

COMMANDS = {
    "export": ("shoal.runtime.commands.export_command", "export_command"),
    "run": ("shoal.runtime.commands.run_command", "run_command"),
    "verify": ("shoal.runtime.commands.verify_command", "verify_command"),
    "inspect": ("shoal.runtime.commands.inspect_command", "inspect_command"),
    "eval": ("shoal.runtime.commands.eval_command", "eval_command"),
    "bench": ("shoal.runtime.commands.bench_command", "bench_command"),
    "pack": ("shoal.runtime.commands.pack_command", "pack_command"),
    "unpack": ("shoal.runtime.commands.pack_command", "unpack_command"),
    "doctor": ("shoal.runtime.commands.doctor_command", "doctor_command"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = build_parser()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model writes more than Latin-1 can show
    try:
        args = parser.parse_args(argv)
        if args.verb is None:
            parser.print_help(sys.stderr)
            return EXIT_USAGE
    except SystemExit as stop:  # argparse: --help, --version or wrong usage
        return stop.code if isinstance(stop.code, int) else EXIT_DONE
    return run_verb(args)


def run_verb(args: argparse.Namespace) -> int:
    """Run the verb that was asked for; every failure becomes one line and an exit code."""
    try:
        with _short_warnings(args.debug):
            return _run_and_flush(args)
    except KeyboardInterrupt:
        return _fail("stopped", args.debug, EXIT_INTERRUPTED)
    except BrokenPipeError:
        return _reader_went_away()
    except ShoalError as error:
        return _fail(f"error: {error}", args.debug)
    except (OSError, MemoryError) as error:
        return _fail(f"error: {args.verb}: {_describe(error)}", args.debug)
    except Exception as error:
        hint = "this is a bug in shoal; run again with --debug and report the traceback"
        return _fail(f"error: {args.verb}: {_describe(error)}; {hint}", args.debug)


def _run_and_flush(args: argparse.Namespace) -> int:
    code = find_command(args)(args)
    sys.stdout.flush()  # here, where a reader that went away is still noticed
    return code


def find_command(args: argparse.Namespace) -> Command:
    """Import what carries out a verb: nothing is imported before it is asked for."""
    module, function = COMMANDS[args.verb]
    command: Command = getattr(importlib.import_module(module), function)
    return command


def _describe(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, MemoryError):
        return "out of memory; close other programs or use a shorter context"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _fail(line: str, debug: bool, code: int = EXIT_FAILED) -> int:
    if debug and code == EXIT_FAILED:
        traceback.print_exc()
    _write_line(sys.stderr, line)
    return code


def _write_line(stream: TextIO, text: str) -> None:
    """One line, whatever the message holds; bytes of odd file names are escaped, not fatal."""
    line = " ".join(text.split())
    encoding = stream.encoding or "utf-8"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def _reader_went_away() -> int:
    """Point stdout at the null device, so that the flush at exit does not fail a second time."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return EXIT_BROKEN_PIPE
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
    return EXIT_BROKEN_PIPE


@contextmanager
def _short_warnings(debug: bool) -> Iterator[None]:
    """Show shoal's own warnings in one line each and keep those of other libraries quiet."""
    if debug:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"shoal\.")
        warnings.showwarning = _show_warning
        yield


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _write_line(file or sys.stderr, f"warning: {message}")


if __name__ == "__main__":
    sys.exit(main())
