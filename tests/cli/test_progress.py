"""Progress of long work: lines in a log, a bar on a terminal."""

from __future__ import annotations

import sys

import pytest

from shoal.runtime.console.progress import WorkProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in its only entry."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_work_that_takes_less_than_ten_seconds_is_not_worth_a_line(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with WorkProgress("verify") as progress:
        for done in range(1, 11):
            clock[0] += 0.9
            progress(done * 1_000_000, 10_000_000, "weights.bin")
    assert capsys.readouterr().err == ""


def test_long_work_says_how_fast_it_is_and_how_long_it_will_take(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with WorkProgress("pack", opening="fetching wheels") as progress:
        progress(0, 100_000_000, "weights.bin")
        clock[0] += 10
        progress(20_000_000, 100_000_000, "weights.bin")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["pack: fetching wheels", "pack:  20%, 20 of 100 MB, 2.0 MB/s, 40 s left"]


def test_lines_come_with_every_share_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with WorkProgress("export", every_share=0.1) as progress:
        for done in range(1, 1001):
            progress(done * 1000, 1_000_000, "x")
    lines = capsys.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 13
    assert lines[-1] == "export: 100%, 1 of 1 MB"


def test_a_bar_is_drawn_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with WorkProgress("export", every_share=0.1) as progress:
        progress(500_000, 1_000_000, "layers.1[0]")
    assert "export" in capsys.readouterr().err


def test_lines_about_tokens_name_what_is_read(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with WorkProgress("eval", "tokens") as progress:
        progress(50, 200, "tiny")
        clock[0] += 10
        progress(100, 200, "tiny")
    assert capsys.readouterr().err == "eval:  50%, 100 of 200 tokens, 20 s left, tiny\n"
