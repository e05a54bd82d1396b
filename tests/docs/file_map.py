"""docs/files.md, made from the first line of every module: ``python -m tests.docs.file_map``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.docs.docstrings import summary
from tests.docs.public_api import ROOT

HEADER = """\
# File map

`make docs` writes this page from the first line of every module; a test compares the two. The C++
sources are listed in [kernels.md](kernels.md#files-of-runtimekernelssrc).
"""

PACKAGES = ("graphs", "export", "runtime")


def file_map() -> str:
    """The whole page."""
    return HEADER + "".join(f"\n{text}" for package in PACKAGES for text in _folder(ROOT / package))


def _folder(folder: Path) -> Iterator[str]:
    """A heading, what the folder is, a table of its modules; then its folders."""
    modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    package = folder / "__init__.py"
    yield f"## {folder.relative_to(ROOT)}/\n"
    if package.exists() and _summary(package):
        yield _summary(package) + "\n"
    if modules:
        rows = [f"| {path.name} | {_summary(path)} |" for path in modules]
        yield "\n".join(["| file | |", "| --- | --- |", *rows]) + "\n"
    for inner in sorted(path for path in folder.iterdir() if any(path.glob("*.py"))):
        yield from _folder(inner)


def _summary(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return summary(text).replace("|", "\\|")


if __name__ == "__main__":
    print(file_map(), end="")
