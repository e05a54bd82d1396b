"""Files that verbs write: their place is tried before the work, and a full disk leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.runtime.commands.cli import main

WRITERS = {
    "the report": ["bench", "BUNDLE", "--report"],
    "the page": ["eval", "BUNDLE", "--html"],
    "the reference": ["eval", "BUNDLE", "--save-reference"],
    "the session": ["run", "BUNDLE", "--prompt", "x", "--session"],
}


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("nowhere/file", "No such file or directory); make the folder or choose another place"),
        ("folder", "Is a directory); choose another name"),
        ("pipe", "expected a regular file, found a device or pipe); choose another name"),
        ("file/file", "Not a directory); make it writable or choose another place"),
    ],
)
def test_the_place_is_tried_before_the_bundle_is_opened(
    what: str, place: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    target = str(tmp_path / place)
    argv = [word.replace("BUNDLE", str(tmp_path / "none")) for word in WRITERS[what]]
    assert main([*argv, target]) == 1
    line = f"error: {target}: {what} could not be written ({reason}\n"
    assert capsys.readouterr().err == line
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "pipe"]


def test_the_place_of_a_pack_is_tried_before_wheels_are_fetched(
    int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dist").mkdir()
    (tmp_path / "taken").touch()
    wheels = ["--wheels", str(tmp_path / "dist"), "--fetch", "aarch64"]
    assert main(["pack", str(int8_bundle), str(tmp_path / "taken"), *wheels]) == 1
    assert "taken: exists already" in capsys.readouterr().err


def test_the_place_of_a_bundle_is_tried_before_the_checkpoint_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "bundle"
    assert main(["export", "someone/something", str(target)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {target}: cannot be written: Not a directory; ")
    assert os.listdir(tmp_path) == ["file"]
