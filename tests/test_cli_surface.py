"""The command line as users know it: verbs, options, exit codes, one-line errors, docs/cli.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from shoal.graphs.errors import BundleError
from shoal.runtime import extras
from shoal.runtime.commands import cli, options
from shoal.runtime.commands.cli_page import cli_page, option_names, verbs_of

ROOT = Path(__file__).parents[1]

COMMON = ["--debug", "--help", "--json", "-h"]
MACHINE = ["--cache", "--kernels", "--max-context", "--max-memory", "--threads"]
HUB = ["--revision", "--token"]
SURFACE = {
    "export": [
        *HUB,
        "--block-size",
        "--calibrate",
        "--calibrate-tokens",
        "--dry-run",
        "--fidelity-text",
        "--fidelity-tokens",
        "--force",
        "--no-fidelity",
        "--resume",
        "--weights",
        "BUNDLE",
        "CHECKPOINT",
    ],
    "run": [
        *MACHINE,
        "--cap-new-tokens",
        "--chat",
        "--draft",
        "--frequency-penalty",
        "--listen",
        "--logit-bias",
        "--logprobs",
        "--loop",
        "--max-new-tokens",
        "--min-p",
        "--presence-penalty",
        "--prompt",
        "--raw",
        "--repetition-penalty",
        "--seed",
        "--session",
        "--stop",
        "--system",
        "--temperature",
        "--top-k",
        "--top-p",
        "--verbose",
        "-v",
        "BUNDLE",
    ],
    "verify": [*HUB, "--checkpoint", "BUNDLE"],
    "inspect": [*HUB, "BUNDLE|CHECKPOINT"],
    "eval": [
        *HUB,
        *MACHINE,
        "--generate",
        "--html",
        "--reference",
        "--save-reference",
        "--tasks",
        "--text",
        "--tokens",
        "--window",
        "BUNDLE|CHECKPOINT",
    ],
    "bench": [
        *MACHINE,
        "--batch",
        "--cache-kl",
        "--depths",
        "--new-tokens",
        "--prefill",
        "--repeats",
        "--report",
        "--speculate",
        "BUNDLE",
    ],
    "pack": ["--fetch", "--python", "--wheels", "BUNDLE", "FILE"],
    "unpack": ["FILE", "FOLDER"],
    "doctor": ["BUNDLE"],
}


def fail_with(error: BaseException) -> object:
    def command(args: argparse.Namespace) -> int:
        raise error

    return lambda args: command


def test_verbs_and_options_are_these() -> None:
    verbs = verbs_of(options.build_parser())
    found = {name: option_names(verb) for name, verb in verbs.items()}
    assert found == {name: sorted([*own, *COMMON]) for name, own in SURFACE.items()}


@pytest.mark.parametrize("verb", SURFACE)
def test_help_names_every_option_and_gives_an_example(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert not [name for name in SURFACE[verb] if name not in text]
    assert f"shoal {verb} " in text.partition("example")[2]


def test_docs_page_is_what_the_parser_says() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == cli_page(options.build_parser()), "run `make docs`"


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"shoal {options.version()}\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["run"],
        ["run", "b", "--temp", "1"],  # no abbreviations: they would freeze every future option
        ["run", "b", "--temperature", "-1"],
        ["run", "b", "--temperature", "nan"],
        ["run", "b", "--top-p", "0"],
        ["run", "b", "--min-p", "1.5"],
        ["run", "b", "--max-new-tokens", "0"],
        ["run", "b", "--draft", "8"],
        ["run", "b", "--draft", "some"],
        ["run", "b", "--chat", "--raw"],
        ["run", "b", "--kernels", "cuda"],
        ["run", "b", "--max-context", "0"],
        ["run", "b", "--max-memory", "much"],
        ["run", "b", "--max-memory", "0"],
        ["run", "b", "--max-memory", "9" * 400],
        ["run", "b", "--max-context", "\N{ARABIC-INDIC DIGIT THREE}"],
        ["run", "b", "--max-memory", "\N{ARABIC-INDIC DIGIT THREE}M"],
        ["eval"],
        ["eval", "b", "--window", "0"],
        ["bench", "b", "--depths", "0,x"],
        ["bench", "b", "--prefill", "0"],
        ["export", "c"],
        ["export", "c", "b", "--block-size", "48"],
    ],
)
def test_wrong_usage_exits_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: shoal" in captured.err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BundleError("b: bad\nthing"), "error: b: bad thing\n"),
        (FileNotFoundError(2, "No such file", "x"), "error: doctor: x: No such file\n"),
        (MemoryError(), "error: doctor: out of memory; close other programs or use a shorter "),
        (ZeroDivisionError("1/0"), "error: doctor: ZeroDivisionError: 1/0; this is a bug in shoal"),
    ],
)
def test_each_failure_is_one_line_and_exits_1(
    error: Exception,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "find_command", fail_with(error))
    assert cli.main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("argv", [["--debug", "doctor"], ["doctor", "--debug"]])
def test_debug_shows_the_traceback(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "find_command", fail_with(BundleError("bad")))
    assert cli.main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("error: bad\n")


def test_ctrl_c_exits_130_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "find_command", fail_with(KeyboardInterrupt()))
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_reader_that_went_away_is_no_error() -> None:
    script = (
        "import sys; from shoal.runtime.commands import cli\n"
        "def command(args):\n"
        "    while True: sys.stdout.write('x' * 65536)\n"
        "cli.find_command = lambda args: command\n"
        "sys.exit(cli.main(['doctor']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_text_that_the_terminal_cannot_show_is_no_error() -> None:
    script = (
        "import sys; from shoal.runtime.commands import cli\n"
        "cli.find_command = lambda args: lambda args: sys.stdout.write('a\\u6df1b') and 0\n"
        "sys.exit(cli.main(['doctor']))\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", script]
    assert subprocess.check_output(command, env=environment, timeout=60) == b"a?b"


def test_missing_export_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(extras, "EXPORT_MODULES", ("torch_of_nowhere", "onnx_of_nowhere"))
    (tmp_path / "config.json").write_text("{}")
    for argv in (
        ["export", str(tmp_path), "b"],
        ["verify", "b", "--checkpoint", str(tmp_path)],
        ["inspect", str(tmp_path)],
        ["eval", str(tmp_path)],
        ["inspect", "no_such/bundle"],
        ["eval", "no_such/bundle"],
    ):
        assert cli.main(argv) == 1
        err = capsys.readouterr().err
        assert "torch_of_nowhere, onnx_of_nowhere are not installed" in err
        assert "pip install 'shoal[export]'" in err
        is_here = not argv[1].startswith("no_such")
        assert is_here != ("no_such/bundle: no such bundle or checkpoint here" in err)
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "NOWHERE", "--prompt", "x"],
        ["verify", "NOWHERE"],
        ["inspect", "NOWHERE"],
        ["eval", "NOWHERE"],
        ["bench", "NOWHERE"],
        ["pack", "NOWHERE", "NOWHERE-p"],
        ["unpack", "NOWHERE", "NOWHERE-b"],
        ["export", "NOWHERE", "NOWHERE-b"],
    ],
)
def test_a_path_that_is_not_there_is_one_line(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = [text.replace("NOWHERE", str(tmp_path / "nowhere")) for text in argv]
    assert cli.main(here) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    *progress, line = captured.err.splitlines()
    assert line.startswith("error: ")
    assert "nowhere" in line
    assert all(text.startswith("export: ") for text in progress)


def test_warnings_of_shoal_are_one_line_and_others_are_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(args: argparse.Namespace) -> int:
        for module in ("shoal.export.checkpoint.tensor_names", "torch.onnx"):
            warnings.warn_explicit(f"from {module}", UserWarning, "x.py", 1, module)
        return 0

    monkeypatch.setattr(cli, "find_command", lambda args: command)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().err == "warning: from shoal.export.checkpoint.tensor_names\n"
