"""The lock, which `make demo` and `make test` install: whole, hashed, within what pyproject admits.

`make lock` mends what these tests find.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ("demo", "test")
OWN = {"shoal", "shoal-optimum"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def entries(lock: str) -> list[str]:
    """The text of each requirement, hashes included."""
    text = (ROOT / ".ci" / "lock" / f"{lock}.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return re.split(r"\n(?=\S)", "\n".join(lines))


def pins(lock: str) -> dict[str, set[str]]:
    """The version of each package; several where one does not fit all Pythons."""
    found: dict[str, set[str]] = {}
    for entry in entries(lock):
        requirement = Requirement(entry.partition("\\")[0])
        (version,) = requirement.specifier
        assert version.operator == "=="
        found.setdefault(canonicalize_name(requirement.name), set()).add(version.version)
    return found


def asked_for(project: dict[str, Any], lock: str) -> list[Requirement]:
    """What a lock must hold, by pyproject.toml."""
    extras = project["project"]["optional-dependencies"]
    used = extras.values() if lock == "test" else [extras["export"]]
    texts = [*project["project"]["dependencies"], *project["dependency-groups"]["build"]]
    found = [Requirement(text) for text in (*texts, *(text for extra in used for text in extra))]
    return [requirement for requirement in found if requirement.name not in {*OWN, "torch"}]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_file_is_known_by_its_hash(lock: str) -> None:
    assert len(entries(lock)) > 20
    assert not [entry for entry in entries(lock) if "--hash=sha256:" not in entry]


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_no_place(lock: str) -> None:
    text = (ROOT / ".ci" / "lock" / f"{lock}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "/" not in text.replace(".ci/lock/", "")


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_is_within_what_pyproject_admits(lock: str, project: dict[str, Any]) -> None:
    pinned = pins(lock)
    for requirement in asked_for(project, lock):
        versions = pinned[canonicalize_name(requirement.name)]
        assert all(version in requirement.specifier for version in versions), requirement


def test_the_demo_runs_in_the_versions_that_are_tested() -> None:
    tested = pins("test")
    assert {name: tested.get(name) for name in pins("demo")} == pins("demo")


def test_torch_is_left_out_and_what_it_needs_is_there(project: dict[str, Any]) -> None:
    (told,) = project["tool"]["uv"]["dependency-metadata"]
    known = {Requirement(text) for text in told["requires-dist"]}
    needed = {Requirement(text) for text in importlib.metadata.requires("torch") or ()}
    # Those with a marker are extras and, of other builds, CUDA packages.
    assert {r for r in needed if r.marker is None} <= known
    pinned = pins("demo")
    assert {canonicalize_name(requirement.name) for requirement in known} <= set(pinned)
    heavy = ("torch", "triton", "nvidia-", "cuda-")
    assert not [name for name in pins("test") if name.startswith(heavy)]
