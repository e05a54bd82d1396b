"""Files that are complete or not there, whoever else writes beside them."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.graphs.errors import RuntimeFailure
from shoal.runtime.atomic_file import atomic_file, check_place

KILLED = """
import os, signal, sys
from pathlib import Path
from shoal.runtime.atomic_file import atomic_file
with atomic_file(Path(sys.argv[1]), "the text") as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write(path: Path, content: bytes) -> None:
    with atomic_file(path, "the text") as file:
        file.write(content)


def check(path: Path) -> None:
    check_place(path, "the text")


def test_writers_with_one_process_id_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers
    with atomic_file(tmp_path / "a", "the text") as first:
        first.write(b"first")
        write(tmp_path / "a", b"second")
        assert (tmp_path / "a").read_bytes() == b"second"
    assert (tmp_path / "a").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_what_a_killed_writer_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    write(tmp_path / "a", b"whole")
    assert os.listdir(tmp_path) == ["a"]


def test_files_of_the_user_stay(tmp_path: Path) -> None:
    (tmp_path / ".a.backup.tmp").touch()
    (tmp_path / f".a.{'0' * 16}.tmp").symlink_to(tmp_path / ".a.backup.tmp")
    write(tmp_path / "a", b"whole")
    assert len(os.listdir(tmp_path)) == 3


def test_the_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write(tmp_path / "a", b"whole")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a")}
    assert len(modes) == 1


def test_a_name_as_long_as_names_may_be_works(tmp_path: Path) -> None:
    write(tmp_path / ("n" * 255), b"whole")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free disk space"),
        (errno.EFBIG, "FAT32 ends at 4 GiB"),
        (errno.ENOENT, "make the folder"),
        (errno.EACCES, "make it writable"),
    ],
)
def test_the_message_fits_the_reason(tmp_path: Path, code: int, advice: str) -> None:
    with (
        pytest.raises(RuntimeFailure, match=advice),
        atomic_file(tmp_path / "a", "the text"),
    ):
        raise OSError(code, os.strerror(code))
    assert os.listdir(tmp_path) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "disk" / "b")
    write(tmp_path / "a", b"whole")
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "disk" / "b").read_bytes() == b"whole"
    assert os.listdir(tmp_path / "disk") == ["b"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("attempt", [lambda path: write(path, b"x"), check])
def test_what_is_no_file_is_not_replaced(
    tmp_path: Path, make: Callable[[Path], None], attempt: Callable[[Path], None]
) -> None:
    make(tmp_path / "a")
    with pytest.raises(RuntimeFailure, match="choose another name"):
        attempt(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]


def test_a_place_that_was_tried_is_as_it_was(tmp_path: Path) -> None:
    check(tmp_path / "a")
    assert os.listdir(tmp_path) == []
    write(tmp_path / "a", b"old")
    check(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
    with pytest.raises(RuntimeFailure, match="make the folder"):
        check(tmp_path / "nowhere" / "a")


def test_a_file_that_the_disk_cannot_hold_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FAT32, where no position from 4 GiB on can be reached."""
    seek = os.lseek

    def on_fat32(descriptor: int, position: int, how: int) -> int:
        if position >= 1 << 32:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return seek(descriptor, position, how)

    monkeypatch.setattr(os, "lseek", on_fat32)
    with atomic_file(tmp_path / "a", "the text", (1 << 32) - 1) as file:
        file.write(b"fits")
    with (
        pytest.raises(RuntimeFailure, match="FAT32 ends at 4 GiB"),
        atomic_file(tmp_path / "b", "the text", 1 << 32),
    ):
        pytest.fail("written")
    assert os.listdir(tmp_path) == ["a"]
