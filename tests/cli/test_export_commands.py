from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal.export import pipeline, verify
from shoal.export.pipeline import ExportReport
from shoal.export.verify import VerifyReport
from shoal.graphs.manifest import Manifest
from shoal.runtime.bundle import Bundle
from shoal.runtime.commands.cli import main


class FakeBundle:
    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def verify_files(self, progress: Any) -> None:
        progress(1, 2, "weights.bin")
        progress(2, 2, "weights.bin")

    def verify_graphs(self) -> None: ...


@pytest.fixture
def export_calls(monkeypatch: pytest.MonkeyPatch, manifest: Manifest) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def fake_export(checkpoint: Path, bundle: Path, **options: Any) -> ExportReport:
        calls.append({"checkpoint": checkpoint, "bundle": bundle} | options)
        options["progress"](5_000_000, 10_000_000, "layers.0")
        return ExportReport(
            bundle=bundle, manifest=manifest, seconds=1.0, peak_memory_bytes=300_000_000
        )

    monkeypatch.setattr(pipeline, "export_bundle", fake_export)
    return calls


def test_options_reach_the_exporter(export_calls: list[dict[str, Any]]) -> None:
    argv = ["export", "c", "b", "--weights", "fp32", "--block-size", "64", "--force"]
    argv += ["--fidelity-text", "t.txt", "--fidelity-tokens", "99", "--no-fidelity"]
    argv += ["--calibrate", "c.txt", "--calibrate-tokens", "7"]
    assert main(argv) == 0
    (call,) = export_calls
    del call["progress"]
    assert call == {
        "checkpoint": Path("c"),
        "bundle": Path("b"),
        "weights": "fp32",
        "block_size": 64,
        "force": True,
        "resume": False,
        "fidelity": False,
        "fidelity_text": Path("t.txt"),
        "fidelity_tokens": 99,
        "calibrate": Path("c.txt"),
        "calibrate_tokens": 7,
    }


def test_report_goes_to_stdout_and_progress_to_stderr(
    export_calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "c", "b"]) == 0
    captured = capsys.readouterr()
    assert "at most 300 MB of memory" in captured.out
    assert "note: only the first MTP module was exported" in captured.out
    assert "export:  50%, 5 of 10 MB" in captured.err


def test_export_json_is_the_only_thing_on_stdout(
    export_calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "c", "b", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bundle_bytes"] == 2_100_000
    assert report["peak_memory_bytes"] == 300_000_000


def test_verify_reads_every_byte(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Bundle, "open", lambda path: FakeBundle(manifest))
    assert main(["verify", "b"]) == 0
    assert capsys.readouterr().out == "b: 1 files, 2.1 MB, every byte as its manifest says\n"
    assert main(["verify", "b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "bundle": "b",
        "ok": True,
        "files": 1,
        "bytes": 2_100_000,
    }


@pytest.mark.parametrize(("differing", "code"), [((), 0), (("lm_head.weight", "head.onnx"), 1)])
def test_verify_against_a_checkpoint_names_what_differs(
    differing: tuple[str, ...],
    code: int,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = VerifyReport(tensors=7, differing=differing, fidelity=None)
    monkeypatch.setattr(Bundle, "open", lambda path: FakeBundle(manifest))
    monkeypatch.setattr(verify, "verify_against_checkpoint", lambda *a, **k: report)
    assert main(["verify", "b", "--checkpoint", "c"]) == code
    captured = capsys.readouterr()
    if differing:
        assert "2 parts differ from what c gives: lm_head.weight, head.onnx" in captured.err
    else:
        assert "7 tensors and all graphs are what c gives" in captured.out
    assert main(["verify", "b", "--checkpoint", "c", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ok"] is not bool(differing)
