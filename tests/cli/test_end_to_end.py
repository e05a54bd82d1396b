"""The commands on a real bundle of the trained tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.export.inspection import checkpoint_report
from shoal.runtime.commands.cli import main
from shoal.runtime.kernels.library import KernelLibrary, find_library

pytestmark = pytest.mark.dependencies

PROMPT = "It is a truth universally acknowledged, that"

# What the console command does, on a machine where nothing of the export extra can be imported.
DEVICE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"):
            raise ModuleNotFoundError(f"{name} is not on this machine", name=name)
        return None

sys.meta_path.insert(0, Blocker())
from shoal.runtime.commands.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_run_answers_where_torch_and_onnx_cannot_be_imported(int8_bundle: Path) -> None:
    argv = ["run", str(int8_bundle), "--prompt", PROMPT, "--max-new-tokens", "8"]
    command = [sys.executable, "-c", DEVICE, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 8
    assert "new: 8 tokens" in done.stderr


def test_run_json_repeats_itself(int8_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for _ in range(2):
        argv = ["run", str(int8_bundle), "--prompt", PROMPT, "--max-new-tokens", "8", "--json"]
        assert main([*argv, "--temperature", "0.8", "--seed", "3"]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1]


def test_run_json_tells_log_probabilities_and_applies_bias(
    int8_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["run", str(int8_bundle), "--prompt", PROMPT, "--max-new-tokens", "4", "--json"]
    assert main([*argv, "--logit-bias", "70=100", "--logprobs", "3"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["token_ids"] == [70] * 4
    for found in report["logprobs"]:
        assert found["token_id"] == 70
        assert found["logprob"] < found["top_logprobs"][0]["logprob"] < 0
        assert len(found["top_logprobs"]) == 3
    assert main([*argv, "--logit-bias", "4096=1"]) == 1
    assert "error: logit_bias: token id 4096 is outside" in capsys.readouterr().err


def test_verify_accepts_a_fresh_bundle_and_names_a_changed_file(
    int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(int8_bundle)]) == 0
    for path in int8_bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.seek(4096)
        byte = file.read(1)
        file.seek(4096)
        file.write(bytes([byte[0] ^ 1]))
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 1
    assert "weights.bin" in capsys.readouterr().err


def test_verify_compares_with_the_checkpoint(
    fp32_bundle: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["verify", str(fp32_bundle), "--checkpoint", str(tiny_checkpoint), "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["checkpoint"]["tensors"] > 50


def test_inspecting_checkpoint_and_bundle_gives_the_same_numbers(
    int8_bundle: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(int8_bundle), "--json"]) == 0
    bundle = json.loads(capsys.readouterr().out)
    checkpoint = checkpoint_report(tiny_checkpoint)
    same = ("parameters", "active_parameters", "token_read_bytes", "cache_token_bytes")
    assert {key: bundle[key] for key in same} == {key: checkpoint[key] for key in same}
    for opened, planned in zip(bundle["memory"], checkpoint["memory"], strict=True):
        for key in ("context_tokens", "cache_bytes"):
            assert opened[key] == planned[key]
        # A bundle's figure counts scratch memory too, a checkpoint's weights and cache only.
        assert opened["portable_bytes"] > planned["memory_bytes"]
    assert bundle["weights_bytes"] == checkpoint["int8_bytes"]


def test_bench_and_doctor_work_on_a_bundle(
    int8_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", str(int8_bundle), "--depths", "0,16", "--prefill", "16", "--repeats", "1"]
    assert main([*argv, "--new-tokens", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert all(row["tokens_per_s"] > 0 for row in report["decode"] + report["prefill"])
    assert report["load_ms"] > 0
    library = find_library()
    isa = library.isa if isinstance(library, KernelLibrary) else None
    assert (report["kernels"], report["isa"]) == ("native" if isa else "portable", isa)
    assert main(["doctor", str(int8_bundle)]) == 0
    assert "opened in" in capsys.readouterr().out


def test_export_onto_a_bundle_needs_force(
    int8_bundle: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tiny_checkpoint), str(int8_bundle)]) == 1
    assert "--force replaces it" in capsys.readouterr().err
