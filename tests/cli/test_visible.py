"""Text from models and files on terminals: shown, not obeyed; and messages of bounded length."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import tiny_manifest

from shoal.graphs.errors import BundleError, InputError
from shoal.graphs.message_length import LONGEST_MESSAGE
from shoal.runtime.commands import cli
from shoal.runtime.commands.inspect_command import _write_report as write_report
from shoal.runtime.commands.inspect_command import bundle_report
from shoal.runtime.console.visible import visible

CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"
STYLE = re.compile("\x1b\\[[0-9;]*m")  # what rich itself writes


class Terminal(io.TextIOWrapper):
    """Says that it is one, and remembers what was written."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="")

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        self.flush()
        content = self.buffer
        assert isinstance(content, io.BytesIO)
        return content.getvalue().decode()


@contextmanager
def terminals() -> Iterator[tuple[Terminal, Terminal]]:
    """Terminals as stdout and stderr."""
    out, err = Terminal(), Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setenv("TERM", "xterm-256color")
        yield out, err


def steering(text: str) -> list[str]:
    """The characters of a text that a terminal acts upon."""
    found = STYLE.sub("", text)
    return [letter for letter in found if letter != "\n" and not letter.isprintable()]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u6df1\u3042 text\tand\n", "plain \u6df1\u3042 text\tand\n"),
        ("\x1b[2J\x07\r\b\0", r"\x1b[2J\x07\r\x08\x00"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("a\u202eb\u2066c\u2069", r"a\u202eb\u2066c\u2069"),
    ],
)
def test_control_characters_are_shown_and_text_is_not_changed(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_an_answer_cannot_steer_the_terminal(base_model: Any) -> None:
    with terminals() as (out, _):
        assert cli.main(["run", "b", "--prompt", CLIPBOARD[::-1]]) == 0
    assert out.text() == "\\x1b]52;c;ZXZpbA==\\x07\n"


def test_a_pipe_gets_what_the_model_wrote(
    base_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "b", "--prompt", CLIPBOARD[::-1]]) == 0
    assert capsys.readouterr().out == CLIPBOARD + "\n"


def test_a_service_on_a_terminal_shows_what_ends_an_answer(int8_bundle: Path) -> None:
    reader, terminal = pty.openpty()
    command = [sys.executable, "-m", "shoal.runtime.commands.cli", "run", str(int8_bundle)]
    subprocess.run(
        [*command, "--loop", "--max-new-tokens", "1"],
        input=b"And God\n",
        stdout=terminal,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    os.close(terminal)
    shown = os.read(reader, 4096).decode()
    os.close(reader)
    assert shown.endswith("\n\\x00")
    assert steering(shown.replace("\r\n", "\n")) == []


def test_a_manifest_cannot_steer_the_terminal() -> None:
    manifest = tiny_manifest(
        shoal_version=CLIPBOARD,
        notes=(f"{CLIPBOARD}\u202e", "[bold red]text[/]"),
        fidelity={"text": CLIPBOARD, "tokens": 1, "window": 1, "kl_mean": 1.0, "kl_p999": 1.0},
    )
    with terminals() as (terminal, _):
        write_report(bundle_report(Path(f"b{CLIPBOARD}"), manifest))
    out = terminal.text()
    assert "\x1b[1m" in out, "styles of our own go on"
    assert steering(out) == []
    assert out.count("\\x1b]52;c;") == 4
    assert "note: [bold red]text[/]\n" in out, "nothing is taken for markup"


def test_names_in_tables_are_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    report = bundle_report(Path("[red]b[/red]"), tiny_manifest(shoal_version="[b]1[/b]"))
    write_report(report)
    out = capsys.readouterr().out
    assert "[red]b[/red]" in out
    assert "[b]1[/b]" in out


@pytest.mark.parametrize("error", [BundleError(CLIPBOARD), OSError(2, "gone", CLIPBOARD)])
def test_no_message_steers_a_terminal(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(cli, "find_command", lambda args: fail)
    for argv in (["doctor"], ["doctor", "--debug"]):
        with terminals() as (_, terminal):
            assert cli.main(argv) == 1
        err = terminal.text()
        assert steering(err) == []
        assert "\\x1b]52;c;" in err


def test_wrong_usage_is_repeated_visibly_and_briefly() -> None:
    with terminals() as (_, terminal):
        assert cli.main(["inspect", "b", CLIPBOARD, *["c" * 100] * 100]) == 2
    err = terminal.text()
    assert steering(err) == []
    assert len(err.splitlines()[-1]) < LONGEST_MESSAGE + 100


@pytest.mark.parametrize(
    "error", [InputError("x.json: " + "y" * 10**6 + "; mend it"), ValueError("x" * 10**6)]
)
def test_messages_are_bounded_and_keep_their_beginning_and_end(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(cli, "find_command", lambda args: fail)
    assert cli.main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert len(err) < LONGEST_MESSAGE + 200
    assert err.startswith("error: ")
    if isinstance(error, InputError):
        assert err.startswith("error: x.json: yyy")
        assert err.endswith("yyy; mend it\n")
        assert len(str(error)) <= LONGEST_MESSAGE, "for users of the library, too"


def test_notes_of_a_megabyte_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    write_report(bundle_report(Path("b"), tiny_manifest(notes=("n" * 10**6,))))
    assert len(capsys.readouterr().out) < 10_000


def test_json_is_ascii_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    from shoal.runtime.console.report import write_json

    write_json({"text": CLIPBOARD + "\x7f\x9b\u202e"})
    out = capsys.readouterr().out
    assert steering(out) == []
    assert json.loads(out)["text"] == CLIPBOARD + "\x7f\x9b\u202e"
