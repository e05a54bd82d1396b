"""The library itself: what it offers, what it refuses, how it is built and found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.graphs.one_op import Array, OneOpModels

from shoal.graphs.errors import RuntimeFailure
from shoal.graphs.ops.table import OPS
from shoal.graphs.quantize import quantize_blocks
from shoal.runtime.engine import session
from shoal.runtime.kernels import build
from shoal.runtime.kernels.library import KernelLibrary, find_library

pytestmark = pytest.mark.dependencies


def linear_inputs() -> dict[str, Array]:
    rng = np.random.default_rng(1)
    codes, scales = quantize_blocks(rng.standard_normal((5, 64), np.float32), 32)
    x = rng.standard_normal((2, 64), np.float32)
    return {"x": x, "weight": codes.reshape(5, 2, 32), "weight_scales": scales}


LINEAR = {"K": 64, "N": 5, "block_size": 32}


def test_the_library_names_its_ops_and_instruction_sets(library: KernelLibrary) -> None:
    assert set(library.ops) <= set(OPS)
    assert {"Linear", "PreciseLinear", "SparseExperts", "Int4SparseExperts"} <= set(library.ops)
    assert {"LatentAttention", "LatentAttentionInt8Cache"} <= set(library.ops)
    assert library.isas[-1] == "portable"
    assert library.isa in library.isas


def test_the_best_instruction_set_is_taken_unless_one_is_named(
    library: KernelLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOAL_ISA", raising=False)
    found = find_library(library.path)
    assert isinstance(found, KernelLibrary)
    assert found.isa == library.isas[0]
    monkeypatch.setenv("SHOAL_ISA", "portable")
    found = find_library(library.path)
    assert isinstance(found, KernelLibrary)
    assert found.isa == "portable"


def test_an_unknown_instruction_set_is_refused(
    library: KernelLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_ISA", "mmx")
    found = find_library(library.path)
    assert isinstance(found, str)
    assert "SHOAL_ISA: expected one of" in found
    with pytest.raises(Exception, match="SHOAL_ISA: expected one of"):
        OneOpModels(tmp_path, library.path).run("Linear", LINEAR, linear_inputs())


def test_a_library_of_no_use_is_not_passed_over_silently(
    library: KernelLibrary, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHOAL_ISA", "mmx")
    monkeypatch.setattr(session, "LIBRARY_FILE", library.path)
    monkeypatch.setattr(session, "find_library", lambda: find_library(library.path))
    assert session.choose_settings("auto", 1).kernels == "portable"
    assert "SHOAL_ISA: expected one of" in caplog.text
    with pytest.raises(RuntimeFailure, match="SHOAL_ISA: expected one of"):
        session.choose_settings("native", 1)


def test_a_missing_library_is_explained(tmp_path: Path) -> None:
    found = find_library(tmp_path / "nowhere.so")
    assert isinstance(found, str)
    assert "python -m shoal.runtime.kernels.build" in found


def test_a_damaged_library_is_explained(tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"not a library")
    found = find_library(tmp_path / "broken.so")
    assert isinstance(found, str)
    assert "cannot be loaded" in found


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"K": 96}, r"weight: expected shape \[5,3,32\], found \[5,2,32\]"),
        ({"N": 6}, r"weight: expected shape \[6,2,32\], found \[5,2,32\]"),
        ({"block_size": 7}, "block_size: expected 16, 32, 64, 128 or 256, found 7"),
        ({"block_size": 16}, r"weight: expected shape \[5,4,16\], found \[5,2,32\]"),
    ],
)
def test_attributes_that_do_not_fit_the_weight_are_refused(
    library: KernelLibrary, tmp_path: Path, change: dict[str, int], text: str
) -> None:
    with pytest.raises(Exception, match=text):
        OneOpModels(tmp_path, library.path).run("Linear", LINEAR | change, linear_inputs())


@pytest.mark.parametrize("name", ["x", "weight_scales"])
def test_inputs_of_the_wrong_shape_are_refused(
    library: KernelLibrary, tmp_path: Path, name: str
) -> None:
    inputs = linear_inputs()
    inputs[name] = inputs[name][..., :-1].copy()
    with pytest.raises(Exception, match=f"{name}: expected shape"):
        OneOpModels(tmp_path, library.path).run("Linear", LINEAR, inputs)


def test_no_compiler_is_one_line_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    command = [sys.executable, "-m", "shoal.runtime.kernels.build"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: native kernels: expected a C++20 compiler")
    assert len(done.stderr.splitlines()) == 1


def test_a_failed_build_leaves_the_old_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "lib.so"
    target.write_bytes(b"old")
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.KernelBuildError, match="failed"):
        build.build_library(target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
