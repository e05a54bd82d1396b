"""Texts with a byte order mark, from pipes, compressed beyond measure, and what is no file."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.graphs import input_files
from shoal.graphs.input_files import (
    TextError,
    open_regular,
    open_text,
    read_bytes,
    read_json,
    read_text,
)

MARK = b"\xef\xbb\xbf"
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=50),
    suffix=st.sampled_from(list(PACK)),
    mark=st.sampled_from([b"", MARK]),
)
def test_a_text_is_read_without_its_mark_however_it_is_packed(tmp_path, text, suffix, mark):
    path = tmp_path / f"text{suffix}"
    content = mark + text.encode()
    path.write_bytes(PACK[suffix](content))
    assert read_text(path) == (text if mark else text.removeprefix("\ufeff"))


def piped(path, content):
    """A thread that writes into a pipe, as long as somebody reads."""

    def write():
        with open(path, "wb", buffering=0) as pipe:
            try:
                pipe.write(content)
            except BrokenPipeError:
                return

    os.mkfifo(path)
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("suffix", PACK)
def test_a_text_may_come_through_a_pipe(tmp_path, suffix):
    path = tmp_path / f"pipe{suffix}"
    thread = piped(path, PACK[suffix](MARK + b"text"))
    assert read_text(path) == "text"
    thread.join(5)


def pieces(path):
    with open_text(path) as file:
        while piece := file.read(1 << 14):
            yield piece


def test_an_endless_pipe_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "LONGEST_PIPE", 100_000)
    thread = piped(tmp_path / "pipe", b"x" * 1_000_000)
    with pytest.raises(TextError, match="at most 100000 bytes"):
        list(pieces(tmp_path / "pipe"))
    thread.join(5)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_small_file_brings_no_gigabytes(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(input_files, "_FEWEST_UNPACKED", 1 << 20)
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(PACK[suffix](bytes(20 << 20)))
    sizes: list[int] = []
    with pytest.raises(TextError, match="bytes of text, found more"):
        sizes.extend(map(len, pieces(path)))
    assert sum(sizes) <= max(1 << 20, 100 * path.stat().st_size)


def test_a_text_that_is_used_whole_has_a_bound(tmp_path):
    path = tmp_path / "text"
    path.write_text("x" * 101)
    assert len(read_text(path, 101)) == 101
    with pytest.raises(TextError, match="at most 100 characters"):
        read_text(path, 100)
    with pytest.raises(OSError, match="at most 100 bytes"):
        read_bytes(path, 100)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"ok \xff", b"\xc3"])
def test_other_bytes_are_said_to_be_no_text(tmp_path, content):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(TextError, match="expected UTF-8 text, found other bytes"):
        read_text(path)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_damaged_archive_is_said_to_be_one(tmp_path, suffix):
    path = tmp_path / f"text{suffix}"
    for content in (b"no archive", PACK[suffix](b"text " * 999)[:40]):
        path.write_bytes(content)
        with pytest.raises(TextError):
            read_text(path)


def test_nothing_but_a_regular_file_is_opened_where_no_pipe_makes_sense(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "nowhere", ""):
        with pytest.raises(OSError, match=r"regular file|No such file|directory"):
            open_regular(tmp_path / name)
    with pytest.raises(OSError, match="regular file"):
        open_regular(Path("/dev/zero"))
    (tmp_path / "file").write_bytes(b"content")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"content"


def test_devices_and_folders_are_no_texts(tmp_path):
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(TextError, match=r"regular file or a pipe|Is a directory"):
            read_text(path)


def test_json_is_read_without_its_mark(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(MARK + json.dumps({"a": "ä"}).encode())
    assert read_json(path) == {"a": "ä"}
