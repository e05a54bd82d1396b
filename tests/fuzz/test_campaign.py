"""The fuzzer finds what is broken: targets that do what no reader may do are reported as such."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.fuzz.broken import kinds
from tests.fuzz.campaign import Campaign, Limits, Plan
from tests.fuzz.fuzz_format import Samples
from tests.fuzz.verdict import FAULTS

LIMITS = Limits(cpu_s=2.0, memory_bytes=50 << 20, limit_bytes=100 << 20)


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    (tmp_path / "work").mkdir()
    return Samples(checkpoint=tmp_path, bundle=tmp_path, work=tmp_path / "work")


def test_every_kind_of_fault_is_noticed_and_kept(samples: Samples, tmp_path: Path) -> None:
    expected = [kind for kind, _ in kinds(tmp_path)]
    assert set(expected) > set(FAULTS)
    plan = Plan(
        module="tests.fuzz.broken",
        samples=samples,
        scratch=tmp_path / "scratch",
        findings=tmp_path / "findings",
        count=len(expected),
        limits=LIMITS,
    )
    tally = Campaign(plan).run()
    assert tally.counts == Counter(expected)
    kept = [path.name.split("-") for path in (tmp_path / "findings").iterdir()]
    assert {kind for *_, kind in kept} == set(FAULTS)
    assert all(expected[int(number)] == kind for _, _, number, kind in kept)
    (aborted,) = (tmp_path / "findings").glob("broken-1-4-*")
    assert "--seed 1 --case 4\n" in (aborted / "finding.txt").read_text()
    assert (aborted / "input" / "what").read_text() == "crash"


def test_a_case_can_be_repeated_by_its_number(samples: Samples, tmp_path: Path) -> None:
    inputs = []
    for first, count in ((0, 8), (7, 1)):
        scratch = tmp_path / "scratch"
        plan = Plan("tests.fuzz.formats.template", samples, scratch, first=first, count=count)
        assert Campaign(plan).run().cases == count
        inputs.append((scratch / "case" / "chat_template.jinja").read_bytes())
    assert inputs[0] == inputs[1] != b""
