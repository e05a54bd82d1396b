"""docs/cli.md, written from the parser itself so that page and program cannot differ."""

from __future__ import annotations

import argparse
import textwrap

HEADER = """\
# The shoal command

Written by `make docs` from the same parser that answers `--help`; a test compares the two.
"""


def cli_page(parser: argparse.ArgumentParser) -> str:
    """The Markdown page about a command and all its verbs.

    It is built from the parser's actions, not from the formatted help, whose layout differs
    between Python versions.
    """
    sections = [HEADER, _description(parser), _options(parser)]
    for name, verb in verbs_of(parser).items():
        sections += [f"## shoal {name}\n", _description(verb), _options(verb), _examples(verb)]
    return "\n".join(section for section in sections if section)


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The sub-parsers of a command by verb."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Every option and positional argument of one verb, as the user writes it, sorted."""
    names: set[str] = set()
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            names.update(action.option_strings or [str(action.metavar)])
    return sorted(names)


def _description(parser: argparse.ArgumentParser) -> str:
    text = parser.description or ""
    if "\n" not in text:
        return textwrap.fill(text, 100) + "\n"
    lines = [f"    {line[2:]}" if line.startswith("  ") else line for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def _options(parser: argparse.ArgumentParser) -> str:
    rows = ["| argument | meaning |", "| --- | --- |"]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            rows += [f"| `{name}` | {_help_of(action, name)} |" for name in action.choices]
        else:
            rows.append(f"| `{_in_cell(_spelling(action))}` | {_in_cell(action.help)} |")
    return "\n".join(rows) + "\n"


def _spelling(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"[{action.metavar}]" if action.nargs == "?" else str(action.metavar)
    name = ", ".join(action.option_strings)
    if action.nargs == 0:
        return name
    value = action.metavar or "|".join(map(str, action.choices or ()))
    return f"{name} {value}" + (" ..." if action.nargs == "+" else "")


def _help_of(action: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> str:
    return next(_in_cell(row.help) for row in action._choices_actions if row.dest == name)


def _in_cell(text: str | None) -> str:
    """Text as a cell of a Markdown table holds it."""
    return " ".join((text or "").split()).replace("|", "\\|")


def _examples(parser: argparse.ArgumentParser) -> str:
    title, _, lines = (parser.epilog or "").partition("\n")
    return f"{title.capitalize()}\n\n```\n" + lines.replace("  shoal", "shoal") + "\n```\n"
