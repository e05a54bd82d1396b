"""docs/api.md is what the docstrings say, and names what users may use."""

from __future__ import annotations

import ast

import pytest
from tests.docs.api_page import SECTIONS, Section, api_page
from tests.docs.docstrings import markdown
from tests.docs.public_api import ROOT, exported_names, find, public_methods

PAGE = ROOT / "docs" / "api.md"


def test_the_page_is_what_the_docstrings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == api_page(), "run `make docs`"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.module)
def test_the_page_has_every_public_name_of_its_modules(section: Section) -> None:
    names = exported_names(section.module) - {"main"}
    assert {*section.names, *section.elsewhere} == names


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.module)
def test_methods_that_are_left_out_exist(section: Section) -> None:
    for text in section.internal:
        name, _, method = text.partition(".")
        definition = find(section.module, name).definition
        assert isinstance(definition, ast.ClassDef)
        assert method in {found.name for found in public_methods(definition)}, text


def test_sections_of_a_docstring_become_lists() -> None:
    docstring = """Do it.

More of ``it``.

Args:
    x: how much,
        on two lines.
    y: how often.

Returns:
    What came
    out.

Raises:
    InputError: too much.
"""
    assert (
        markdown(docstring)
        == """Do it.

More of `it`.

**Arguments**

- `x`: how much, on two lines.
- `y`: how often.

**Returns**: What came out.

**Raises**

- `InputError`: too much.
"""
    )
