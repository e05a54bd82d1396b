"""What the README says about files is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["graphs", "export", "runtime"])
def test_the_file_map_names_every_module_and_no_other(folder: str) -> None:
    section = README.split(f"`{folder}/`, ")[1].split("\n`")[0].split("\n###")[0]
    named = set(re.findall(r"\b(\w+\.py)\b", section))
    there = {path.name for path in (ROOT / folder).rglob("*.py")} - {"__init__.py"}
    in_subfolders = {path.name for path in (ROOT / folder).glob("*/*.py")}
    assert named <= there
    assert there - in_subfolders <= named


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
