"""Arguments whose bytes are no UTF-8: paths work or are named, texts are refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from shoal.runtime.commands.cli import main

ODD = os.fsdecode(b"caf\xe9")


@pytest.fixture
def odd_bundle(int8_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(int8_bundle, tmp_path / ODD / "bundle", copy_function=os.link)


def test_a_bundle_is_read_wherever_it_lies(odd_bundle: Path, tmp_path: Path) -> None:
    pack, copy = str(odd_bundle.with_name("pack")), str(odd_bundle.with_name("copy"))
    for argv in (["inspect"], ["verify", "--json"], ["pack", pack]):
        assert main([argv[0], str(odd_bundle), *argv[1:]]) == 0
    assert main(["unpack", pack, copy]) == 0


@pytest.mark.parametrize("argv", [["run", "--prompt", "x"], ["bench"], ["eval"]])
def test_what_onnxruntime_cannot_open_is_named_with_advice(
    argv: list[str], odd_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([argv[0], str(odd_bundle), *argv[1:]]) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "expected a path in UTF-8, as onnxruntime does, found other bytes; rename its" in line


def test_no_bundle_is_written_where_none_could_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "someone/something", str(tmp_path / ODD)]) == 1
    err = capsys.readouterr().err
    assert "expected a path in UTF-8, found other bytes; choose another name" in err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "b", "--stop", ODD],
        ["run", "b", "--system", ODD],
        ["export", "a/b", "c", "--revision", ODD],
    ],
)
def test_texts_in_other_bytes_are_wrong_usage(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert f"{argv[-2]}: expected UTF-8 text, found other bytes" in capsys.readouterr().err


@pytest.mark.parametrize("token", [ODD, "hf_\u00e9", "hf_x\n"])
def test_a_token_that_cannot_be_one_is_not_repeated(
    token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "a/b", "--token", token]) == 2
    err = capsys.readouterr().err
    assert "--token: expected printable ASCII, found other characters" in err
    assert token[:3] not in err.splitlines()[-1]
