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
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from shoal.graphs.errors import ShoalError
from shoal.graphs.message_length import bounded, bounded_line
from shoal.runtime.commands.options import build_parser
from shoal.runtime.console.streams import (
    is_closed,
    open_streams,
    settle,
    unwritten,
    write_message,
)
from shoal.runtime.kernels.library import end_on_lost_weights

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 0, 1, 2, 130, 141

_MAPS_WEIGHTS = ("run", "eval", "bench")
_STDOUT_CLOSED = "error: stdout is closed; send it to a file, or to /dev/null"

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
    open_streams()
    code = _parse_and_run(argv)
    refused = settle(sys.stdout)  # the end of what was written may go no further
    if refused is not None and code == EXIT_DONE:
        code = _failed_to_write(refused)
    settle(sys.stderr)
    return code


def _parse_and_run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
        if args.verb is None:
            parser.print_help(sys.stderr)
            return EXIT_USAGE
    except SystemExit as stop:  # argparse: --help, --version or wrong usage
        code = stop.code if isinstance(stop.code, int) else EXIT_DONE
        return _fail(_STDOUT_CLOSED) if code == EXIT_DONE and is_closed(sys.stdout) else code
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except ShoalError as error:  # stdout refuses the help
        return _fail(f"error: {error}")
    if is_closed(sys.stdout) and getattr(args, "listen", None) is None:
        return _fail(_STDOUT_CLOSED)
    return run_verb(args)


def _failed_to_write(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        return EXIT_BROKEN_PIPE
    return _fail(f"error: {unwritten(error)}")


def run_verb(args: argparse.Namespace) -> int:
    """Run the verb that was asked for; every failure becomes one line and an exit code."""
    if args.verb in _MAPS_WEIGHTS:
        end_on_lost_weights()
    try:
        with _short_warnings(args.debug):
            return find_command(args)(args)
    except KeyboardInterrupt:
        return _fail("stopped", code=EXIT_INTERRUPTED)
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except ShoalError as error:
        return _fail(f"error: {error}", args.debug)
    except (OSError, MemoryError) as error:
        return _fail(f"error: {args.verb}: {_describe(error)}", args.debug)
    except Exception as error:
        hint = "this is a bug in shoal; run again with --debug and report the traceback"
        return _fail(f"error: {args.verb}: {_describe(error)}; {hint}", args.debug)


def find_command(args: argparse.Namespace) -> Command:
    """Import what carries out a verb: nothing is imported before it is asked for."""
    module, function = COMMANDS[args.verb]
    command: Command = getattr(importlib.import_module(module), function)
    return command


def _describe(error: BaseException) -> str:
    text = bounded(str(error))
    if isinstance(error, MemoryError):
        return "out of memory; close other programs or use a shorter context"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _fail(line: str, debug: bool = False, code: int = EXIT_FAILED) -> int:
    with suppress(BrokenPipeError):  # nobody is there to read it
        if debug:
            write_message(traceback.format_exc().rstrip())
        _write_line(line)
    return code


def _write_line(text: str) -> None:
    """One line, whatever the message holds."""
    write_message(bounded_line(text))


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
    _write_line(f"warning: {message}")


if __name__ == "__main__":
    sys.exit(main())
