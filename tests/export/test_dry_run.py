"""``shoal export --dry-run`` says what an export then does, and does nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.graphs.contract import MANIFEST_FILE
from shoal.runtime.bundle import Bundle
from shoal.runtime.commands.cli import main


def test_a_dry_run_foretells_the_bundle_and_writes_nothing(
    tiny_checkpoint: Path, int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "not" / "yet"
    options = ["--dry-run", "--no-fidelity"]
    assert main(["export", *options, "--json", str(tiny_checkpoint), str(target)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    manifest = Bundle.open(int8_bundle).manifest
    sizes = {path.name: path.stat().st_size for path in int8_bundle.iterdir()}
    del sizes[MANIFEST_FILE]
    assert record["files"] == sizes
    assert record["bundle_bytes"] == sum(sizes.values())
    assert record["tensors"] == len(manifest.tensors)
    assert record["parameters"] == manifest.model.parameters
    assert record["active_parameters"] == manifest.model.active_parameters
    assert record["token_read_bytes"] == manifest.token_read_bytes
    assert [row["context_tokens"] for row in record["memory"]] == [2048]


def test_a_dry_run_for_people_lists_the_files(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--dry-run", "--weights", "fp32"]
    assert main([*command, str(tiny_checkpoint), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "nothing is written" in out
    assert "weights.bin" in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_an_export_would_refuse(
    tiny_checkpoint: Path, int8_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--dry-run", str(tiny_checkpoint), str(int8_bundle)]) == 1
    assert "--force replaces it" in capsys.readouterr().err
