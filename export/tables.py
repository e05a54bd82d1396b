"""Tables of the exporter's reports on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

_PLAIN_WIDTH = 120  # columns when stdout is no terminal: nothing to fit into


def write_pairs(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values under a title."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    _write(title, table)


def write_grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of numbers under column headings."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, name in enumerate(columns):
        table.add_column(name, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    _write(title, table)


def _write(title: str, table: Table) -> None:
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    console = Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(title, style="bold")
        console.print(table)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())
