"""A few cases of every format; ``make fuzz`` runs as many as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fuzz.campaign import Campaign, Plan
from tests.fuzz.fuzz_format import FORMATS, Samples
from tests.fuzz.samples import make_samples

CASES = 100


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return make_samples(tmp_path_factory.mktemp("samples"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_damaged_input_is_refused_in_one_line(
    name: str, samples: Samples, tmp_path: Path
) -> None:
    module, scratch = f"tests.fuzz.formats.{name}", tmp_path / "scratch"
    tally = Campaign(Plan(module, samples, scratch, count=CASES)).run()
    assert tally.findings == []
    assert tally.cases == CASES
    assert tally.counts["refused"] > CASES // 3
