"""A bundle whose routed experts have 4 bits, from export to logits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tests.tolerances import FIDELITY_EMULATION, INT4_MEAN_KL
from tokenizers import Tokenizer

from shoal.export.pipeline import export_bundle
from shoal.export.verify import verify_against_checkpoint
from shoal.graphs.fidelity import shipped_text
from shoal.runtime import open_bundle
from shoal.runtime.commands.cli import main

TOKENS = 512


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int4") / "b"
    export_bundle(tiny_checkpoint, folder, weights="int4-experts", fidelity_tokens=TOKENS)
    return folder


@pytest.fixture(scope="module")
def calibrated(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrated on the shipped text without its beginning."""
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "text.txt").write_text(shipped_text()[8000:], encoding="utf-8")
    export_bundle(
        tiny_checkpoint,
        folder / "b",
        weights="int4-experts",
        fidelity_tokens=TOKENS,
        calibrate=folder / "text.txt",
    )
    return folder / "b"


@pytest.fixture(scope="module")
def kl(bundle: Path, fp32_bundle: Path, tiny_checkpoint: Path) -> np.ndarray:
    """KL divergence from the float32 bundle at each position of the shipped text's beginning."""
    return _divergence(bundle, fp32_bundle, tiny_checkpoint)


def _divergence(bundle: Path, fp32_bundle: Path, tiny_checkpoint: Path) -> np.ndarray:
    text = shipped_text()
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    begin = tokenizer.encode("").ids[:1]
    ids = begin + tokenizer.encode(text, add_special_tokens=False).ids[: TOKENS - len(begin)]
    expected, found = (
        _log_softmax(open_bundle(path, kernels="portable", threads=1).logits(ids))
        for path in (fp32_bundle, bundle)
    )
    divergence: np.ndarray = (np.exp(expected) * (expected - found)).sum(axis=-1)
    return divergence


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    shares: np.ndarray = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return shares


def test_only_routed_experts_have_4_bits(bundle: Path) -> None:
    manifest = open_bundle(bundle, threads=1).manifest
    assert manifest.weights == "int4-experts"
    assert {kind for kind, form in manifest.formats.items() if form.bits == 4} == {"experts"}
    packed = {name for name, info in manifest.tensors.items() if info.dtype == "uint4"}
    assert packed == {name for name in manifest.tensors if name.endswith((".gate_up", ".down"))}
    for name in packed:
        info, scales = manifest.tensors[name], manifest.tensors[f"{name}_scales"]
        values = math.prod(info.shape)
        assert (info.size, scales.size) == (values // 2, values // 32 * 4)


def test_parameters_are_counted_one_by_one(bundle: Path, fp32_bundle: Path) -> None:
    ours, theirs = (open_bundle(path, threads=1).manifest.model for path in (bundle, fp32_bundle))
    assert ours == theirs


def test_the_bundle_stays_close_to_the_float_model(bundle: Path, kl: np.ndarray) -> None:
    assert kl.mean() <= INT4_MEAN_KL, f"mean KL divergence {kl.mean():.2e}"
    fidelity = open_bundle(bundle, threads=1).manifest.fidelity
    assert fidelity is not None
    ratio = fidelity["kl_mean"] / kl.mean()
    assert 1 / FIDELITY_EMULATION <= ratio <= FIDELITY_EMULATION, f"report / run is {ratio:.3f}"


def test_the_weights_can_be_derived_again(bundle: Path, tiny_checkpoint: Path) -> None:
    report = verify_against_checkpoint(bundle, tiny_checkpoint, fidelity_tokens=64)
    assert report.differing == ()


def test_calibration_brings_it_closer_on_another_text(
    calibrated: Path, kl: np.ndarray, fp32_bundle: Path, tiny_checkpoint: Path
) -> None:
    found = _divergence(calibrated, fp32_bundle, tiny_checkpoint)
    assert np.median(found) <= 0.85 * np.median(kl)
    assert found.mean() < kl.mean()


def test_what_a_text_has_rounded_is_left_out_of_the_comparison(
    calibrated: Path, tiny_checkpoint: Path
) -> None:
    report = verify_against_checkpoint(calibrated, tiny_checkpoint)
    assert report.differing == ()
    assert len(report.unchecked) == 4 * 2 * 2  # layers, matrices, codes and scales
    assert all(".mlp.experts." in name for name in report.unchecked)


def test_inspect_says_what_is_stored_how(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (experts,) = (line for line in lines if line.startswith("4 bits, blocks of 32"))
    assert experts.split()[-1] == "experts"
    (precise,) = (line for line in lines if "inputs of two terms" in line)
    assert precise.endswith("attention input, dense")
