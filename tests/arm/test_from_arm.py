"""Contexts that the emulated processors saved go on here."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.arm import answers
from tests.arm.answers import FORMS, Answers
from tests.arm.sysroot import CPUS
from tests.arm.test_on_arm import assert_same_logits


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_a_context_saved_there_goes_on_here(
    form: tuple[str, str], cpu: str, bundles: Path, arm_folder: Path
) -> None:
    model = answers.open_form(bundles, *form)
    there = Answers.load(answers.answers_file(arm_folder, *form, cpu))
    after = answers.logits_after(model, answers.context_file(arm_folder, *form, cpu))
    assert_same_logits(there.after[None], after[None], form[0])
