"""The program takes every command of the documentation; the README's print what it shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.public_api import ROOT
from tests.docs.test_links import name_of, pages

from shoal.runtime.commands import options

README = (ROOT / "README.md").read_text(encoding="utf-8")
PLACEHOLDERS = {"RECIPE": "int8", "N": "64"}
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of fenced blocks; indented blocks have no language."""
    for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield fence[1], fence[2]
    unfenced = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for lines in re.finditer(r"(?:^    \S.*\n)+", unfenced, re.MULTILINE):
        yield "", re.sub(r"^    ", "", lines[0], flags=re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """Arguments of every shoal command in the blocks of a page."""
    for language, content in blocks(text):
        for line in content.replace("\\\n", "").splitlines() if language in ("", "bash") else ():
            match = re.match(r"(?:\$ )?(?:\S+/)?shoal (.+)", line)
            if match:
                bare = re.split(r" [<|>] ?|   +\S", match[1])[0]  # redirections; a comment beside
                yield shlex.split(bare, comments=True)


def python_blocks(text: str) -> list[str]:
    return [content for language, content in blocks(text) if language == "python"]


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_the_parser_takes_every_command(page: Path) -> None:
    parser = options.build_parser()
    for words in commands(page.read_text(encoding="utf-8")):
        try:
            parser.parse_args([PLACEHOLDERS.get(word, word) for word in words])
        except SystemExit:
            pytest.fail(f"shoal {shlex.join(words)}")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository to the README's commands."""
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def session() -> list[tuple[str, list[str]]]:
    """The commands of the README's first block, with the lines that it shows of their output."""
    steps: list[tuple[str, list[str]]] = []
    for line in next(blocks(README))[1].splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        else:
            steps[-1][1].append(line)
    return steps


@pytest.mark.slow
def test_the_first_session_prints_what_the_readme_shows(here: Path) -> None:
    for command, shown in session():
        printed = run("bash", "-c", command).splitlines()
        # Figures differ between machines in their last digits; words do not.
        lines = iter(NUMBER.sub("N", line) for line in printed)
        wanted = [NUMBER.sub("N", line) for line in shown if line != "..."]
        missing = [line for line in wanted if line not in lines]  # in this order
        assert not missing, printed
        if "..." not in shown:
            assert len(wanted) == len(printed)


@pytest.mark.slow
def test_the_python_of_the_readme_writes_a_text(here: Path) -> None:
    (code,) = python_blocks(README)
    divergence, _, text = run(sys.executable, "-c", code).partition("\n")
    assert 0 < float(divergence) < 0.01
    assert len(text.split()) > 8


def test_commands_are_found_in_blocks_of_both_kinds() -> None:
    text = "```\n$ shoal run a --loop < b\n```\n\n    shoal eval a b     # both\n\n`shoal c`\n"
    assert list(commands(text)) == [["run", "a", "--loop"], ["eval", "a", "b"]]
