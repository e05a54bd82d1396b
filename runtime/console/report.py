"""How the command line writes results: tables for people, JSON for programs, both on stdout."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from shoal.graphs.message_length import bounded
from shoal.runtime.console.streams import write_message, write_result, write_styled
from shoal.runtime.console.visible import visible_on_terminals

_PLAIN_WIDTH = 120  # columns when stdout is no terminal: nothing to fit into


def write_json(report: Mapping[str, Any]) -> None:
    """Print a report as ASCII JSON; numbers that JSON does not have (NaN, infinity) become null."""
    text = json.dumps(_finite(report), indent=1, allow_nan=False).replace("\x7f", "\\u007f")
    write_result(text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_pairs(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values under a title."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(*_cells((name, value)))
    _write_table(title, table)


def write_grid(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True
) -> None:
    """Print rows under column headings.

    Args:
        title: line above the table.
        columns: headings.
        rows: one text per column.
        numbers: all columns but the first hold numbers and go to the right.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, name in enumerate(columns):
        justify: Literal["left", "right"] = "right" if numbers and position else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    _write_table(title, table)


def write_lines(lines: Sequence[str]) -> None:
    """Print lines of plain text."""
    write_result("".join(f"{bounded(line)}\n" for line in lines))


def progress_line(text: str) -> None:
    """Print one line about what is going on to stderr."""
    write_message(text)


def _cells(texts: Sequence[str]) -> list[str]:
    """Texts from files, which may be long and are not all meant for terminals."""
    return [visible_on_terminals(bounded(text), sys.stdout) for text in texts]


def _write_table(title: str, table: Table) -> None:
    is_terminal = sys.stdout.isatty()
    page = io.StringIO()
    console = Console(
        file=page,
        force_terminal=is_terminal,
        width=None if is_terminal else _PLAIN_WIDTH,
        markup=False,
        highlight=False,
        emoji=False,
    )
    console.print(*_cells((title,)), style="bold")
    console.print(table)
    lines = [line.rstrip() for line in page.getvalue().split("\n")]
    write_styled("\n".join(lines))
