from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.graphs.ops.table import OPS
from shoal.graphs.recipes import RECIPES, WeightFormat
from shoal.runtime.bundle import Bundle
from shoal.runtime.commands import doctor_command as doctor
from shoal.runtime.commands.cli import main
from shoal.runtime.engine import fit, session
from shoal.runtime.engine.need import bundle_need
from shoal.runtime.kernels.library import KernelLibrary, find_library
from shoal.runtime.kernels.op_forms import int8_instructions, op_forms
from shoal.runtime.machine.memory import Memory
from shoal.runtime.machine.processor import Cpu

PI5 = Cpu(
    model="Raspberry Pi 5",
    architecture="aarch64",
    features=("asimddp",),
    usable_cpus=4,
    physical_cores=4,
    big_cores=4,
    quota_cpus=None,
)
PC = replace(PI5, architecture="x86_64", features=("avx2", "avx512_vnni"))


def test_report_is_json_and_the_exit_code_says_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["versions"]["onnxruntime"]
    assert report["cpu"]["physical_cores"] >= 1
    library = find_library()
    native = library.ops if isinstance(library, KernelLibrary) else ()
    for op in report["ops"]:
        assert op["form"] == ("native" if op["op"] in native else "portable")


def test_table_names_versions_machine_and_ops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for text in ("onnxruntime", "processor", "Form of each op", "SparseExperts", "Ready to run"):
        assert text in out


@pytest.mark.parametrize(
    ("version", "text"),
    [(None, "not installed"), ("1.30.0", "older than 1.32"), ("0.9", "older than 1.32")],
)
def test_wrong_onnxruntime_is_an_error(version: str | None, text: str) -> None:
    (error,) = doctor.installation_errors(version)
    assert text in error
    assert "pip install" in error


@pytest.mark.parametrize("version", ["1.32.0", "1.33", "2.0.0.dev1"])
def test_new_enough_onnxruntime_is_none(version: str) -> None:
    assert doctor.installation_errors(version) == []


def test_good_machines_have_no_warnings() -> None:
    assert doctor.machine_warnings(PI5, has_native=False) == []
    assert doctor.machine_warnings(PC, has_native=False) == []
    pi4 = replace(PI5, features=())
    assert doctor.machine_warnings(pi4, has_native=True) == [], "NEON kernels need no dot product"


@pytest.mark.parametrize(
    ("cpu", "text"),
    [
        (replace(PI5, features=()), "asimddp"),
        (replace(PC, features=()), "AVX2"),
        (replace(PC, quota_cpus=1.5), "1.5 processors of 4"),
    ],
)
def test_what_slows_a_machine_down_is_a_warning(cpu: Cpu, text: str) -> None:
    (warning,) = doctor.machine_warnings(cpu, has_native=False)
    assert text in warning


def test_a_bundle_that_does_not_open_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(tmp_path / "nowhere")]) == 1
    assert "error: " in capsys.readouterr().out


def test_a_bundle_is_opened_and_both_forms_say_what_they_need(
    int8_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(int8_bundle), "--json"]) == 0
    bundle = json.loads(capsys.readouterr().out)["bundle"]
    forms = {form["kernels"]: form for form in bundle["forms"]}
    assert bundle["kernels"] == next(iter(forms)), "the first is the one that runs"
    assert forms["portable"]["copied_bytes"] > 9e6
    assert forms["portable"]["longest_context"] == 2048
    if "native" in forms:
        assert forms["native"]["copied_bytes"] == 0
        assert forms["native"]["anonymous_bytes"] < forms["portable"]["anonymous_bytes"]
    assert main(["doctor", str(int8_bundle)]) == 0
    assert "2048 tokens" in capsys.readouterr().out


def test_a_bundle_that_only_native_kernels_can_hold_is_no_error(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need = bundle_need(Bundle.open(int8_bundle).manifest, "native").anonymous_bytes(512)
    for free, library, status in (
        (need, find_library(), 0),
        (need, "no kernels", 1),
        (need // 9, find_library(), 1),
    ):
        memory = Memory(total_bytes=1 << 34, available_bytes=free)
        monkeypatch.setattr(fit, "read_memory", lambda memory=memory: memory)
        for module in (doctor, session):
            monkeypatch.setattr(module, "find_library", lambda library=library: library)
        assert main(["doctor", str(int8_bundle), "--json"]) == status
        report = json.loads(capsys.readouterr().out)
        if status:
            assert "of memory" in report["errors"][0]
        else:
            assert "come from the disk" in report["warnings"][0]


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        (PC, "AVX512-VNNI"),
        (PI5, "dot product"),
        (replace(PC, features=("avx2",)), "AVX2"),
        (replace(PC, features=()), "no 8-bit instructions"),
    ],
)
def test_int8_instructions_are_named(cpu: Cpu, name: str) -> None:
    assert int8_instructions(cpu) == name


def test_without_kernels_every_form_is_portable_and_says_why() -> None:
    forms = op_forms(RECIPES["int8"].formats, PC, "no native kernels installed")
    assert {form.form for form in forms} == {"portable"}
    assert {form.why for form in forms} == {"no native kernels installed"}


def test_with_kernels_only_the_ops_they_offer_are_native() -> None:
    library = KernelLibrary(path=Path("k.so"), ops=("Linear",), isa="avx2", isas=("avx2",))
    forms = {form.op: form for form in op_forms(RECIPES["int8"].formats, PC, library)}
    assert (forms["Linear"].form, forms["Linear"].implementation) == ("native", "avx2")
    assert forms["Route"].form == "portable"


def test_forms_cover_the_op_set() -> None:
    stored = [recipe.formats for recipe in RECIPES.values()] + [{}]  # {}: float32
    shown = {form.op for formats in stored for form in op_forms(formats, PC, "none")}
    assert shown == set(OPS) - {"DequantizeBlocks", "UnpackNibbles"}  # inside other ops


def test_ops_follow_the_formats_of_the_manifest_whatever_the_recipe_is_called(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Bundle.open(int8_bundle)
    int4 = {"experts": WeightFormat(bits=4, block_size=32)}
    for formats, op in ((int4, "Int4SparseExperts"), ({}, "FloatSparseExperts")):
        manifest = replace(found.manifest, weights="int8", formats=formats)
        monkeypatch.setattr(Bundle, "open", lambda path, m=manifest: replace(found, manifest=m))
        monkeypatch.setattr(doctor, "check_bundle", lambda *args: {})
        report = doctor.doctor_report(int8_bundle)
        assert op in {form["op"] for form in report["ops"]}
        main(["inspect", str(int8_bundle)])
        assert ("native kernels" in capsys.readouterr().out) is bool(formats)
