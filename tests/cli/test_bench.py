from __future__ import annotations

import json
from typing import Any

import pytest

from shoal.runtime.bench.speed import measure_decode, measure_prefill
from shoal.runtime.bench.timing import median_s, random_ids
from shoal.runtime.commands.cli import main


def test_report_has_a_row_for_each_length_and_depth(
    base_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "b", "--depths", "0,8", "--prefill", "4,16", "--new-tokens", "2", "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["tokens"] for row in report["prefill"]] == [4, 16]
    assert [row["depth"] for row in report["decode"]] == [0, 8]
    assert set(report["memory"]) == {"before", "loaded", "after"}
    assert report["token_read_bytes"] == 520_000
    sampling = report["sampling"]
    assert {row["vocab_size"] for row in sampling} == {256, 129_280}
    assert {row["form"] for row in sampling} > {"temperature 1", "everything"}
    assert all(row["ms_per_token"] > 0 for row in sampling)


def test_table_is_printed_without_json(base_model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "b", "--depths", "0", "--prefill", "4"]) == 0
    captured = capsys.readouterr()
    assert "Prefill (median)" in captured.out
    assert "Memory" in captured.out
    assert "ms of 129280 tokens" in captured.out
    assert "bench: decode at depth 0" in captured.err


def test_lengths_beyond_the_context_are_named_and_left_out(
    base_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "b", "--depths", "0,99", "--prefill", "4,101", "--new-tokens", "2", "--json"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "left out 101: the context ends at 100 tokens" in captured.err
    assert "left out 99" in captured.err
    assert [row["depth"] for row in json.loads(captured.out)["decode"]] == [0]


def test_no_length_that_fits_is_one_line(
    base_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "b", "--prefill", "101"]) == 1
    assert "expected lengths of at most 100 tokens, found 101" in capsys.readouterr().err


def test_every_measurement_starts_at_the_same_depth(base_model: Any) -> None:
    measure_decode(base_model, (8,), 3, 2)
    assert len(base_model.contexts[-1].tokens) == 8 + 3
    measure_prefill(base_model, (5,), 2)
    assert base_model.contexts[-1].calls == ["prefill 5"] * 3


def test_median_leaves_the_warm_up_out() -> None:
    calls: list[int] = []
    assert median_s(lambda: calls.append(1), 3) < 1.0
    assert len(calls) == 4


def test_random_ids_are_the_same_each_time_and_in_the_vocabulary(base_model: Any) -> None:
    ids = random_ids(base_model, 50)
    assert ids == random_ids(base_model, 50)
    assert all(0 <= token < 256 for token in ids)
