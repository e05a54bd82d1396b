from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal.runtime.bench.speculate import DRAFTS, ratios_to_first
from shoal.runtime.commands.cli import main
from shoal.runtime.model import Model


def run(bundle: Path, *options: str) -> int:
    argv = ["bench", str(bundle), "--depths", "0", "--prefill", "4", "--new-tokens", "16"]
    return main([*argv, "--repeats", "1", "--threads", "1", "--speculate", *options])


def test_report_has_every_step_and_every_draft(
    int8_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(int8_bundle, "--json") == 0
    report = json.loads(capsys.readouterr().out)["speculation"]
    steps = report["steps"]
    assert [row["tokens"] for row in steps] == [1, 2, 3, 4]
    assert steps[0]["cost"] == steps[0]["experts"] == 1
    unions = [row["experts"] for row in steps]
    assert unions == sorted(unions)
    # 4 of 16 experts a token, 2 of 4 groups of 4: four tokens need at most all of them.
    assert unions[-1] <= 4
    assert report["is_possible"]
    assert [row["draft"] for row in report["drafts"]] == [*DRAFTS, "auto"]
    assert [row["first_text"] for row in report["drafts"]] == [False] * 4 + [True]
    for row in report["drafts"]:
        assert all(0 <= share <= 1 for share in row["acceptance"])
        product = row["speed_up"] * row["break_even_tokens_per_step"]
        assert product == pytest.approx(row["tokens_per_step"])


def test_tables_are_printed_and_say_where_drafts_are_not_possible(
    int8_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shoal.runtime.drafting.drafts.shortest_depth", lambda settings: 10**6)
    assert run(int8_bundle) == 0
    out = capsys.readouterr().out
    assert "Steps of several tokens" in out
    assert "Nothing was drafted" in out


def test_a_bundle_without_the_module_is_one_line(
    int8_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "can_draft", False)
    assert run(int8_bundle) == 1
    assert "--speculate needs a multi-token-prediction module" in capsys.readouterr().err


def test_ratios_are_those_of_each_turn() -> None:
    times = iter([9.0, 9.0, 1.0, 2.0, 10.0, 20.0, 3.0, 9.0])
    actions: list[Any] = [lambda: next(times), lambda: next(times)]
    assert ratios_to_first(actions, 3) == ([1.0, 2.0], 3.0)
