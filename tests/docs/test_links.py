"""Links of the documentation lead somewhere, and every path it and the code name exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.public_api import ROOT

FOLDERS = ("checkpoints", "docs", "export", "graphs", "notebooks", "runtime", "tests")
# Not part of a longer path or address.
NAMED_PATH = re.compile(
    rf"(?<![\w./:-])(?:{'|'.join(FOLDERS)})/[\w./-]*\.(?:py|md|h|cc|json|txt|ipynb)\b"
)
NAMED_FOLDER = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w/-]*)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    folders = (ROOT, ROOT / "docs", ROOT / "notebooks", ROOT / "checkpoints" / "tiny-v3")
    return sorted(path for folder in folders for path in folder.glob("*.md"))


def sources() -> list[Path]:
    return sorted(path for folder in ("export", "graphs", "runtime") for path in files_of(folder))


def files_of(folder: str) -> Iterator[Path]:
    for suffix in ("py", "h", "cc"):
        yield from (ROOT / folder).rglob(f"*.{suffix}")


def anchors_of(page: Path) -> set[str]:
    """The anchors GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    bare = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in bare}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def there(name: str) -> bool:
    return (ROOT / name).exists()


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path), target


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {*NAMED_PATH.findall(text), *NAMED_FOLDER.findall(text)}
    assert not [name for name in named if "NAME" not in name and not there(name)]


def test_every_path_that_the_code_names_exists() -> None:
    wrong = [
        f"{name_of(path)}: {name}"
        for path in sources()
        for name in NAMED_PATH.findall(path.read_text(encoding="utf-8"))
        if not there(name)
    ]
    assert not wrong


def test_paths_and_links_are_told_from_other_text() -> None:
    assert NAMED_PATH.findall("see graphs/contract.py, or `docs/cli.md`.") == [
        "graphs/contract.py",
        "docs/cli.md",
    ]
    assert NAMED_PATH.findall("/opt/docs/cli.md https://example.org/docs/cli.md") == []
    assert LINK.findall("[a](b.md#c) [d](e.md)") == ["b.md#c", "e.md"]


def test_the_readme_links_every_page() -> None:
    targets = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    linked = {target.partition("#")[0] for target in targets}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert not wanted - linked


def test_the_architecture_names_every_wing() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    wings = set(re.findall(r"^\| `([\w/]+)/` \|", page, re.MULTILINE))
    packages = ("export", "graphs", "runtime")
    inner = {path.parent for name in packages for path in (ROOT / name).glob("*/__init__.py")}
    assert wings == {*packages, *(name_of(path) for path in inner)}


def test_contributing_names_every_make_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    phony = re.search(r"^\.PHONY:(.+)$", makefile, re.MULTILINE)
    assert phony is not None
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z-]+)", page))
    assert named == set(phony[1].split()) - {"help"}
