"""Bundles exported on x86 and answers given there, on an aarch64 processor."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.arm import answers, op_cases
from tests.arm.answers import FORMS, Answers, mean_kl
from tests.arm.sysroot import CPUS
from tests.graphs.one_op import Array, OneOpModels, assert_near
from tests.graphs.op_inputs import tie_bound
from tests.kernels.isas import ISAS
from tests.kernels.test_native_experts import widen
from tests.tolerances import (
    ATTENTION_FORMS,
    CLEAR_MARGIN,
    FLOAT32_LOGITS,
    FLOAT32_SUMS,
    INT8_MEAN_KL,
    OTHER_PROCESSOR_KL,
)

from shoal.runtime import open_bundle
from shoal.runtime.kernels.library import KernelLibrary, find_library
from shoal.runtime.machine.processor import read_cpu

CPU = os.environ["SHOAL_ARM_CPU"]
MIN_CLEAR_STEPS = 8


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def form(request: pytest.FixtureRequest) -> tuple[str, str]:
    bundle_and_kernels: tuple[str, str] = request.param
    return bundle_and_kernels


@pytest.fixture(scope="module")
def expected(form: tuple[str, str], arm_folder: Path) -> Answers:
    return Answers.load(answers.answers_file(arm_folder, *form))


@pytest.fixture(scope="module")
def found(form: tuple[str, str], bundles: Path, arm_folder: Path) -> Answers:
    """What this processor answers; its context is kept for the machine that emulates it."""
    model = answers.open_form(bundles, *form)
    assert model.kernels == form[1]
    result = answers.answer(model, answers.context_file(arm_folder, *form, CPU))
    result.save(answers.answers_file(arm_folder, *form, CPU))
    return result


@functools.cache
def float_answers(folder: Path) -> Answers:
    """The float32 model on x86."""
    return Answers.load(answers.answers_file(folder, *FORMS[0]))


def assert_same_logits(expected: Array, found: Array, bundle: str) -> None:
    if bundle == "tiny-fp32":
        assert np.abs(found - expected).max() <= FLOAT32_LOGITS
    else:
        assert mean_kl(expected, found) <= OTHER_PROCESSOR_KL


def test_this_is_the_processor_it_should_be() -> None:
    cpu = read_cpu()
    assert cpu.architecture == "aarch64"
    assert ("asimddp" in cpu.features) == ("asimddp" in CPUS[CPU].features.split())


def test_logits_are_those_of_x86(form: tuple[str, str], expected: Answers, found: Answers) -> None:
    assert_same_logits(expected.logits, found.logits, form[0])


def test_int8_is_as_close_to_float_as_it_has_to_be(found: Answers, arm_folder: Path) -> None:
    assert mean_kl(float_answers(arm_folder).logits, found.logits) <= INT8_MEAN_KL


def test_clear_choices_of_experts_are_those_of_x86(
    expected: Answers, found: Answers, arm_folder: Path
) -> None:
    # Where all of int8's rounding does not change whom a router chooses, another processor's
    # rounding, which is less, does not either.
    clear = (float_answers(arm_folder).experts == expected.experts).all(axis=-1)
    assert clear.mean() > 0.9
    assert np.array_equal(found.experts[clear], expected.experts[clear])


def test_greedy_tokens_are_those_of_x86_while_they_are_clear(
    expected: Answers, found: Answers
) -> None:
    unclear = np.flatnonzero(expected.margins < CLEAR_MARGIN)
    steps = unclear[0] if unclear.size else expected.margins.size
    assert steps >= MIN_CLEAR_STEPS
    assert np.array_equal(found.greedy[:steps], expected.greedy[:steps])


def test_a_context_saved_on_x86_goes_on_here(
    form: tuple[str, str], expected: Answers, bundles: Path, arm_folder: Path
) -> None:
    model = answers.open_form(bundles, *form)
    saved = answers.context_file(arm_folder, *form)
    assert_same_logits(expected.after[None], answers.logits_after(model, saved)[None], form[0])


def test_drafting_changes_no_token(bundles: Path) -> None:
    model = open_bundle(bundles / "tiny-int8", kernels="native", threads=1)
    ids = model.encode(answers.TEXT)
    plain = list(model.generate(ids, max_new_tokens=answers.NUM_NEW_TOKENS))
    assert list(model.generate(ids, max_new_tokens=answers.NUM_NEW_TOKENS, draft=2)) == plain


def test_kernels_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    # One file for all processors: without the dispatch, dot products would end the process here.
    monkeypatch.delenv("SHOAL_ISA", raising=False)
    library = find_library()
    assert isinstance(library, KernelLibrary), library
    features = CPUS[CPU].features.split()
    needs = {"dotprod": "asimddp", "i8mm": "i8mm"}
    missing = [isa for isa, feature in needs.items() if feature not in features]
    assert library.isas == tuple(isa for isa in ISAS if isa not in missing)
    assert library.isa == library.isas[0]
    for isa in missing:
        monkeypatch.setenv("SHOAL_ISA", isa)
        assert "SHOAL_ISA: expected one of" in str(find_library())


def test_kernels_give_what_they_give_on_x86(arm_folder: Path, tmp_path: Path) -> None:
    library = find_library()
    assert isinstance(library, KernelLibrary)
    models = OneOpModels(tmp_path, library.path)
    with np.load(arm_folder / "ops.npz") as results:
        for name, op, inputs in op_cases.op_cases():
            output = op_cases.RUN[op](models, inputs)[0]
            if op.endswith("Linear"):  # sums of a block are integers, and blocks are added in order
                assert np.array_equal(output, results[name]), name
            elif op == "LatentAttention":
                assert_near(output, results[name], ATTENTION_FORMS)
            else:
                wide = widen(inputs) if op.startswith("Int4") else inputs
                assert_near(output, results[name], FLOAT32_SUMS, tie_bound(**wide))


# A device has the wheel and what pip installed with it: no compiler, no torch, not this tree.
ON_A_DEVICE = """
import importlib.util, shutil, sys
assert not [name for name in ("torch", "onnx", "pytest") if importlib.util.find_spec(name)]
assert not [name for name in ("c++", "g++", "clang++", "cc") if shutil.which(name)]
from shoal.runtime.commands.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs the command as it is installed on the device and returns what it prints."""
    folder = tmp_path_factory.mktemp("device")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", ON_A_DEVICE, *arguments],
            cwd=folder,
            env={"PATH": str(folder), "HOME": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_installed_wheel_unpacks_and_runs_a_bundle(
    device: Callable[..., str], bundles: Path, arm_folder: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    device("unpack", str(arm_folder / answers.PACK), str(bundle))
    for file in (bundles / "tiny-int8").iterdir():
        assert (bundle / file.name).read_bytes() == file.read_bytes()
    count = str(MIN_CLEAR_STEPS)
    for kernels in ("native", "portable"):
        options = ["--kernels", kernels, "--max-new-tokens", count, "--prompt", answers.TEXT]
        text = device("run", str(bundle), *options)
        expected = Answers.load(answers.answers_file(arm_folder, "tiny-int8", kernels))
        tokens = expected.greedy[:MIN_CLEAR_STEPS].tolist()
        assert text.rstrip("\n") == open_bundle(bundle).decode(tokens)
