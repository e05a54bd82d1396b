"""Text files to documents: plain text, or JSON lines with a "text" each, either compressed or not.

Texts are read in pieces, so that one much larger than memory can be evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO

from shoal.graphs.errors import InputError
from shoal.graphs.fidelity import shipped_text
from shoal.graphs.input_files import TextError, open_text

SHIPPED = "shipped"
"""Name of the text that comes with shoal."""

_PIECE_CHARACTERS = 1 << 20
_LONGEST_LINE = 16 << 20  # characters of a line in JSON

Document = Iterator[str]
"""The pieces of a text whose words belong together, each cut at the end of a line."""


def read_documents(path: Path | None) -> Iterator[Document]:
    """The documents of a text file; each must be read to its end before the next.

    Args:
        path: plain text is one document; in a file named .jsonl every line is one, an object with
            a "text". Both may be compressed, as .xz or .gz. None is the text shipped with shoal.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or a line is no such object.
    """
    if path is None:
        yield iter([shipped_text()])
    elif _kind(path) == ".jsonl":
        yield from (iter([text]) for text in _json_texts(path))
    else:
        yield _pieces(path)


@contextmanager
def reading_text(path: Path, what: str) -> Iterator[IO[str]]:
    """Open a UTF-8 text, compressed or not, as its name says.

    Args:
        path: the file or pipe.
        what: what it holds, for messages.

    Raises:
        InputError: it cannot be opened, or reading it in the block fails.
    """
    try:
        with open_text(path) as file:
            yield file
    except TextError as error:
        raise InputError(f"{path}: the {what} cannot be read ({error}); check the path") from error


def json_lines(file: IO[str], path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """The objects of a JSON lines file, each with its place for messages.

    Raises:
        InputError: a line is no JSON object.
    """
    for number in count(1):
        line = file.readline(_LONGEST_LINE)
        if not line:
            return
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        if len(line) == _LONGEST_LINE:
            raise InputError(f"{where}: expected a line of fewer than {_LONGEST_LINE} characters")
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: expected a JSON object, found other text") from error
        if not isinstance(item, dict):
            raise InputError(f"{where}: expected a JSON object, found {type(item).__name__}")
        yield where, item


def _json_texts(path: Path) -> Iterator[str]:
    with reading_text(path, "text") as file:
        for where, item in json_lines(file, path):
            text = item.get("text")
            if not isinstance(text, str):
                raise InputError(f'{where}: expected a "text", found keys {sorted(item)[:8]}')
            yield text


def _pieces(path: Path) -> Iterator[str]:
    with reading_text(path, "text") as file:
        while piece := file.read(_PIECE_CHARACTERS):
            yield piece + file.readline(_PIECE_CHARACTERS)


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in (".xz", ".gz") else path.suffix
