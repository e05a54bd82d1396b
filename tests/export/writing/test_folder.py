"""A bundle folder appears complete or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.export.writing.folder import replaced_folder
from shoal.graphs.contract import MANIFEST_FILE
from shoal.graphs.errors import ExportError


def make_bundle(target: Path, content: str = "old") -> None:
    with replaced_folder(target, force=True) as work:
        (work / MANIFEST_FILE).write_text(content)


def leftovers(parent: Path, target: Path) -> list[str]:
    return [p.name for p in parent.iterdir() if p != target]


def test_folder_appears_with_its_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    make_bundle(target, "new")
    assert (target / MANIFEST_FILE).read_text() == "new"
    assert leftovers(target.parent, target) == []


def test_existing_bundle_is_replaced_only_by_force(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    make_bundle(target)
    with pytest.raises(ExportError, match="--force"), replaced_folder(target, force=False):
        pass
    make_bundle(target, "new")
    assert (target / MANIFEST_FILE).read_text() == "new"
    assert leftovers(tmp_path, target) == []


def test_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "photos"
    target.mkdir()
    (target / "photo").write_text("keep")
    with pytest.raises(ExportError, match="other files"), replaced_folder(target, force=True):
        pass
    assert (target / "photo").read_text() == "keep"


def test_an_error_takes_back_the_folders_above(tmp_path: Path) -> None:
    def export_and_fail() -> None:
        with replaced_folder(tmp_path / "new" / "deep" / "bundle", force=False):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        export_and_fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_on_the_way_leaves_the_target_as_it_was(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "bundle"
    make_bundle(target)

    def export_and_fail() -> None:
        with replaced_folder(target, force=True) as work:
            (work / MANIFEST_FILE).write_text("half")
            raise error

    with pytest.raises(error):
        export_and_fail()
    assert (target / MANIFEST_FILE).read_text() == "old"
    assert leftovers(tmp_path, target) == []


def test_two_exports_into_one_folder_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with (
        replaced_folder(target, force=True) as work,
        pytest.raises(ExportError, match="another export"),
        replaced_folder(target, force=True),
    ):
        pass
    assert not work.exists()


def test_a_killed_export_leaves_the_target_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    make_bundle(target)
    code = f"""
import os, signal
from pathlib import Path
from shoal.export.writing.folder import replaced_folder
with replaced_folder(Path({str(target)!r}), force=True) as work:
    (work / "weights.bin").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert os.listdir(target) == [MANIFEST_FILE]
    make_bundle(target, "new")
    assert (target / MANIFEST_FILE).read_text() == "new"
    assert leftovers(tmp_path, target) == []


def test_a_file_in_the_way_is_reported(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.write_text("a file")
    with pytest.raises(ExportError, match="not a folder"), replaced_folder(target, force=True):
        pass
