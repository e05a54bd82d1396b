"""A session has one process at a time, and no turn of it is lost without a word."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime.atomic_file import atomic_file
from shoal.runtime.dialogue.session_file import SessionFile, open_session


class SavedText:
    """Stands for a context."""

    def __init__(self, text: str) -> None:
        self.text = text

    def save(self, path: Path, note: dict[str, Any]) -> None:
        with atomic_file(path, "the context") as file:
            file.write(self.text.encode())


def save(session: SessionFile, text: str) -> None:
    session.save(SavedText(text), {})  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.session"


def test_a_session_is_refused_to_a_second_one_from_the_first_turn_on(path: Path) -> None:
    with open_session(path) as session:
        assert session.is_new
        for text in ("one", "two"):
            with (
                pytest.raises(InputError, match="another process has this session open; end that"),
                open_session(path),
            ):
                pass
            save(session, text)
            assert not session.is_new
    with open_session(path) as session:
        assert not session.is_new
    assert path.read_text() == "two"


def test_a_session_that_was_replaced_all_the_same_is_not_overwritten(path: Path) -> None:
    with open_session(path) as session:
        save(session, "one")
        SavedText("another's").save(path, {})
        with pytest.raises(RuntimeFailure, match="another process has replaced this session"):
            save(session, "two")
    assert path.read_text() == "another's"


def test_of_two_that_make_a_session_the_slower_is_refused(path: Path) -> None:
    with open_session(path) as session:
        SavedText("another's").save(path, {})
        with pytest.raises(RuntimeFailure, match="another process has replaced this session"):
            save(session, "one")
    assert path.read_text() == "another's"


def test_a_session_that_was_removed_is_written_anew(path: Path) -> None:
    with open_session(path) as session:
        save(session, "one")
        path.unlink()
        save(session, "two")
        with pytest.raises(InputError, match="another process"), open_session(path):
            pass
    assert path.read_text() == "two"


def test_nothing_is_left_of_a_session_in_which_nothing_was_saved(path: Path) -> None:
    with open_session(path):
        assert path.exists(), "the place is tried before anything is computed"
    assert not path.exists()


def test_an_empty_file_is_a_new_session(path: Path) -> None:
    path.touch()
    with open_session(path) as session:
        assert session.is_new


def test_what_is_no_regular_file_is_refused_at_once(path: Path, tmp_path: Path) -> None:
    os.mkfifo(path)
    for wrong, message in (
        (path, "expected a regular file for the session; name another"),
        (tmp_path, "the session cannot be read .* check the path"),
        (tmp_path / "none" / "a", "the session cannot be read .* check the path"),
    ):
        with pytest.raises(InputError, match=message), open_session(wrong):
            pass
