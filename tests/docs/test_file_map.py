"""docs/files.md names every module, as its first line does."""

from __future__ import annotations

from tests.docs.file_map import file_map
from tests.docs.public_api import ROOT

PAGE = ROOT / "docs" / "files.md"


def test_the_page_is_what_the_modules_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == file_map(), "run `make docs`"


def test_every_module_and_folder_says_what_it_is() -> None:
    rows = [line for line in file_map().splitlines() if line.startswith("| ") and ".py" in line]
    assert len(rows) > 150
    assert not [row for row in rows if row.endswith("|  |")]
