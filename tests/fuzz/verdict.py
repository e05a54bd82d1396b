"""What came of a case, judged by what a user of the command line would see."""

from __future__ import annotations

import argparse
import io
import re
import traceback
import unicodedata
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from tests.fuzz.fuzz_format import AcceptedDamage, Use

from shoal.graphs.message_length import LONGEST_MESSAGE
from shoal.runtime.commands import cli

SOUND = ("refused", "accepted")
FAULTS = {
    "crash": "the process ended",
    "hang": "it took too long",
    "memory": "it took too much memory, or ran out of it",
    "traceback": "an exception got past the command line",
    "bug": 'it was answered with "this is a bug"',
    "damage": "a damaged input was accepted",
    "outside": "it wrote outside its folder, started a process or a connection",
    "message": "it was refused, but not in one printable line of sensible length with advice",
}
"""Kinds of findings and what each means."""

LONGEST_LINE = LONGEST_MESSAGE + 100
"""Characters: a message with what the command line puts around it."""

_LONGEST_SUMMARY, _MOST = 300, 20_000
_TURNING = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))
_VERB = "fuzz"
_NO_ERROR_LINE = re.compile(r"(warning|export|verify|eval): |\[opened in ")
_ADVICE = re.compile(r"; \S+ \S|\bmust\b|\bexpect(ed|s)\b")


@dataclass(frozen=True)
class Verdict:
    """What came of a case: one of ``SOUND`` or ``FAULTS``, and the line or traceback with it."""

    kind: str
    detail: str = ""

    @property
    def summary(self) -> str:
        """The last line of the detail, printable and short."""
        line = self.detail.strip().rpartition("\n")[2]
        return line.encode("unicode_escape").decode()[:_LONGEST_SUMMARY]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def verdict_of(use: Use) -> Verdict:
    """Carry out a case as a verb of the command line would be, and judge what it shows."""
    out, err, traces = _Terminal(), io.StringIO(), list[str]()
    cli.COMMANDS[_VERB] = (__name__, carry_out.__name__)
    args = argparse.Namespace(verb=_VERB, debug=False, use=_traced(use, traces))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = cli.run_verb(args)
    except AcceptedDamage as damage:
        return Verdict("damage", str(damage))
    except BaseException:  # a panic of a library in Rust is no Exception
        return Verdict("traceback", traceback.format_exc())
    verdict = _judge(code, out.getvalue(), err.getvalue())
    if verdict.kind in ("bug", "memory"):
        return Verdict(verdict.kind, f"{verdict.detail}\n{''.join(traces)}")
    return verdict


def carry_out(args: argparse.Namespace) -> int:
    """The verb itself."""
    args.use()
    return cli.EXIT_DONE


def _traced(use: Use, traces: list[str]) -> Callable[[], Any]:
    def traced() -> None:
        try:
            use()
        except BaseException:
            traces.append(traceback.format_exc())
            raise

    return traced


def _judge(code: int, out: str, err: str) -> Verdict:
    if not _is_printable(out):
        return Verdict("message", f"control characters on the terminal: {out!a}"[:_MOST])
    lines = [line for line in err.split("\n") if line and not _NO_ERROR_LINE.match(line)]
    text = "\n".join(lines)
    if code == cli.EXIT_DONE:
        return (
            Verdict("message", f"accepted, with {text}"[:_MOST]) if lines else Verdict("accepted")
        )
    if code != cli.EXIT_FAILED:
        return Verdict("traceback", f"exit code {code}: {text}"[:_MOST])
    if "this is a bug in shoal" in text:
        return Verdict("bug", text[:_MOST])
    if "out of memory" in text:
        return Verdict("memory", text[:_MOST])
    problem = _problem_of(lines)
    return Verdict("message", f"{problem}: {text[:_MOST]}") if problem else _refused(text)


def _refused(text: str) -> Verdict:
    return Verdict("refused", text[:500])


def _problem_of(lines: list[str]) -> str:
    if len(lines) != 1:
        return f"{len(lines)} lines"
    (line,) = lines
    if not line.startswith("error: "):
        return "no error"
    if len(line) > LONGEST_LINE:
        return f"{len(line)} characters"
    if not _is_harmless(line):
        return f"control characters: {line!a}"
    if not _ADVICE.search(line):
        return "no advice"
    return ""


def _is_printable(text: str) -> bool:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)  # bold, as rich writes it
    return all(_is_harmless(line) for line in plain.replace("\t", " ").split("\n"))


def _is_harmless(line: str) -> bool:
    """Whether a terminal shows a line as it is: nothing steers it or turns the order around."""
    return not any(
        unicodedata.category(letter) == "Cc" or unicodedata.bidirectional(letter) in _TURNING
        for letter in line
    )
