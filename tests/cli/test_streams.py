"""Standard streams that are closed, full or broken: the right exit status and no traceback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.runtime.commands.cli import COMMANDS

SHOAL = [sys.executable, "-m", "shoal.runtime.commands.cli"]
ARGUMENTS = {
    "export": ["nowhere", "bundle"],
    "run": ["nowhere", "--prompt", "x"],
    "verify": ["nowhere"],
    "inspect": ["./nowhere"],
    "eval": ["./nowhere"],
    "bench": ["nowhere"],
    "pack": ["nowhere", "file"],
    "unpack": ["nowhere", "folder"],
    "doctor": ["nowhere"],
}


def shoal(
    arguments: list[str], redirections: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command with the redirections of a shell."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *SHOAL, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=cwd,
    )


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_fails_in_peace_without_any_stream(verb: str, tmp_path: Path) -> None:
    done = shoal([verb, *ARGUMENTS[verb]], "<&- >&- 2>&-", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("redirections", ["2>&-", "<&- 2>&-"])
def test_what_needs_neither_stdin_nor_stderr_does_without(
    redirections: str, int8_bundle: Path
) -> None:
    done = shoal(["inspect", str(int8_bundle)], redirections)
    assert done.returncode == 0
    assert "weights" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments", [["inspect", "b"], ["run", "b", "--prompt", "x"], ["--help"], ["--version"]]
)
def test_a_closed_stdout_is_named_before_any_work(arguments: list[str]) -> None:
    done = shoal(arguments, ">&-")
    assert done.returncode == 1
    assert done.stderr == "error: stdout is closed; send it to a file, or to /dev/null\n"


@pytest.mark.parametrize(
    ("options", "redirections", "line"),
    [
        ([], "<&-", "stdin: expected a prompt, found nothing; give --prompt TEXT"),
        ([], "0> out", "stdin: cannot be read (Bad file descriptor); give --prompt TEXT"),
        (["--loop"], "<&-", "run --loop: stdin is closed; send lines to it, or listen with "),
    ],
)
def test_a_stdin_that_holds_no_prompt_is_named(
    options: list[str], redirections: str, line: str, tmp_path: Path
) -> None:
    done = shoal(["run", "b", *options], redirections, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {line}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["inspect", "BUNDLE"], ["--help"]])
@pytest.mark.parametrize(
    ("redirections", "reason"),
    [("> /dev/full", "No space left on device"), ("1< /dev/null", "Bad file descriptor")],
)
def test_a_stdout_that_takes_nothing_is_one_line(
    arguments: list[str], redirections: str, reason: str, int8_bundle: Path
) -> None:
    done = shoal([a.replace("BUNDLE", str(int8_bundle)) for a in arguments], redirections)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: stdout: {reason}; ")
    assert done.stderr.count("\n") == 1


def test_a_service_whose_stdout_takes_nothing_says_so(int8_bundle: Path) -> None:
    arguments = ["run", str(int8_bundle), "--loop", "--max-new-tokens", "1"]
    done = shoal(arguments, "> /dev/full << end\nAnd God\nend\n")
    assert done.returncode == 1
    assert done.stderr.endswith("\nerror: run: stdout: No space left on device\n")


def test_a_log_on_a_full_disk_ends_no_work(int8_bundle: Path) -> None:
    done = shoal(
        ["run", str(int8_bundle), "--prompt", "And", "--max-new-tokens", "2"], "2> /dev/full"
    )
    assert done.returncode == 0
    assert done.stdout.strip()


def test_a_service_needs_no_stream_and_gives_their_numbers_to_no_file(
    int8_bundle: Path, tmp_path: Path
) -> None:
    """As under a supervisor that has closed all three."""
    listen = ["run", str(int8_bundle), "--listen", "./s", "--max-new-tokens", "2"]
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *SHOAL, *listen]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        try:
            answer = ask(tmp_path / "s", b"And God\n")
            streams = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
        finally:
            process.send_signal(signal.SIGTERM)
    assert answer.endswith(b"\n\0")
    assert b"error" not in answer
    assert streams == ["/dev/null"] * 3
    assert process.returncode == 0


def ask(path: Path, line: bytes) -> bytes:
    until_s = time.monotonic() + 30
    while not path.exists() and time.monotonic() < until_s:
        time.sleep(0.02)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        client.sendall(line)
        answer = b""
        while not answer.endswith(b"\0"):
            answer += client.recv(4096)
        return answer
