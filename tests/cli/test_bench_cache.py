from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.runtime.commands.cli import main

ARGV = ["--prefill", "4", "--new-tokens", "1", "--repeats", "1", "--threads", "1", "--cache-kl"]


def test_types_are_compared_at_each_depth(
    fp32_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(fp32_bundle), "--depths", "0,100", *ARGV, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["cache_kl"]
    kinds = [(row["cache"], row["depth"], row["cache_token_bytes"]) for row in rows]
    assert kinds == [(c, d, b) for c, b in (("float16", 1600), ("int8", 1000)) for d in (0, 100)]
    assert all(0 < row["kl_median"] < 1e-4 and row["same_top"] > 0.9 for row in rows)
    assert rows[0]["kl_median"] < rows[2]["kl_median"] / 10
    assert main(["bench", str(fp32_bundle), "--depths", "0", *ARGV]) == 0
    assert "Cache types against float32 (128 tokens at each depth)" in capsys.readouterr().out


def test_depths_beyond_the_text_are_one_line(
    fp32_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", str(fp32_bundle), "--depths", "0,9000", "--max-context", "9200", *ARGV]
    assert main(argv) == 1
    assert "the shipped text has 8577 tokens, these depths need 9128" in capsys.readouterr().err


def test_run_names_the_cache_and_its_bytes(
    fp32_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["run", str(fp32_bundle), "--prompt", "a", "--max-new-tokens", "1", "--cache", "int8"]
    assert main(argv) == 0
    assert "int8 cache of 1 kB per token]" in capsys.readouterr().err
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["cache"], report["cache_token_bytes"]) == ("int8", 1000)
