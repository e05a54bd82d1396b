"""Docstrings in Google form as Markdown."""

from __future__ import annotations

import re
import textwrap

_LISTS = ("Args", "Attributes", "Raises")
_TITLES = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Raises": "Raises",
    "Returns": "Returns",
}
_HEADING = re.compile(r"(Args|Attributes|Raises|Returns|Source):\n?", re.MULTILINE)


def markdown(docstring: str) -> str:
    """A docstring: its text, then each section under a bold title."""
    parts = []
    for block in _blocks(docstring.replace("``", "`")):
        title = _HEADING.match(block)
        parts.append(block if title is None else _section(title[1], block[title.end() :]))
    return "\n\n".join(parts) + "\n"


def without(docstring: str, title: str) -> str:
    """A docstring that lacks one of its sections."""
    kept = [block for block in _blocks(docstring) if not block.startswith(f"{title}:")]
    return "\n\n".join(kept)


def summary(docstring: str) -> str:
    """The first sentence, or all of the first paragraph, on one line."""
    return " ".join(docstring.replace("``", "`").partition("\n\n")[0].split())


def _blocks(docstring: str) -> list[str]:
    """Paragraphs, each with what is indented below it."""
    return re.split(r"\n\n(?=\S)", docstring)


def _section(title: str, text: str) -> str:
    body = textwrap.dedent(text)
    if title not in _LISTS:
        return f"**{_TITLES.get(title, title)}**: {' '.join(body.split())}"
    entries = re.split(r"\n(?=\S)", body)
    return f"**{_TITLES[title]}**\n\n" + "\n".join(_entry(entry) for entry in entries)


def _entry(text: str) -> str:
    name, _, meaning = text.partition(":")
    return f"- `{name}`: {' '.join(meaning.split())}"
