from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.runtime.commands.cli import main

ARGV = ["--prefill", "4", "--new-tokens", "2", "--repeats", "1", "--threads", "1"]


def test_contexts_together_stand_beside_contexts_one_by_one(
    int8_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", str(int8_bundle), "--depths", "0,6", *ARGV, "--batch", "1,3"]
    assert main([*argv, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["batch"]
    assert [(row["contexts"], row["depth"]) for row in rows] == [(1, 0), (3, 0)]
    for row in rows:
        in_a_step = row["tokens_per_s"] * row["ms_per_step"] / 1000
        assert in_a_step == pytest.approx(row["contexts"])
        assert row["apart_tokens_per_s"] > 0
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "Several contexts in one step (0 tokens in each)" in captured.out
    assert "bench: 3 contexts in one step" in captured.err
