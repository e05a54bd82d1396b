"""Texts cut into windows: what a model reads at once, from an empty context on.

A window never crosses from one document into the next. It begins with the token that begins a text,
if the model has one; the last window of a document is as long as the rest of it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shoal.graphs.errors import InputError
from shoal.runtime.evaluation.texts import SHIPPED, Document, read_documents
from shoal.runtime.text.tokenizer import Tokenizer

_FEWEST_IDS = 2  # the first of a window is predicted from nothing


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens that are read at once."""

    ids: npt.NDArray[np.int32]  # [T], at least two
    predicted_bytes: int  # UTF-8 bytes of the text of all tokens but the first


@dataclass(frozen=True, kw_only=True)
class Windows:
    """All windows of some texts; four bytes of memory for each token."""

    texts: tuple[str, ...]  # names
    length: int  # tokens of a full window
    windows: tuple[Window, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all windows, those that begin them included."""
        return sum(len(window.ids) for window in self.windows)

    @property
    def sha256(self) -> str:
        """Of the token ids and where windows begin."""
        digest = hashlib.sha256()
        for window in self.windows:
            digest.update(len(window.ids).to_bytes(4, "little"))
            digest.update(window.ids.astype("<i4").tobytes())
        return digest.hexdigest()


def cut_windows(
    paths: Sequence[Path], tokenizer: Tokenizer, length: int, num_tokens: int | None
) -> Windows:
    """Read texts, encode them and cut them into windows.

    Args:
        paths: text files (see ``read_documents``); none for the text that comes with shoal.
        tokenizer: of the models.
        length: tokens of a full window, at least 2.
        num_tokens: take at most this many tokens of text; None for all.

    Raises:
        InputError: a text cannot be read, or there is nothing to predict in any.
    """
    windows: list[Window] = []
    left = num_tokens
    for path in paths or (None,):
        before = len(windows)
        for document in read_documents(path):
            tokens = islice(_tokens(document, tokenizer), left)
            for window, count in _cut(tokens, tokenizer.begin_ids, length):
                left = None if left is None else left - count
                if len(window.ids) >= _FEWEST_IDS:
                    windows.append(window)
            if left == 0:
                break
        if len(windows) == before and left != 0:
            raise InputError(
                f"{path}: expected text of at least {_FEWEST_IDS} tokens, found fewer; choose "
                "another --text"
            )
        if left == 0:
            break
    if not windows:
        raise InputError(
            f"expected at least {_FEWEST_IDS} tokens to evaluate, found {num_tokens}; ask for more"
        )
    _warn_of_short_windows(paths, windows, length)
    names = tuple(path.name for path in paths)
    return Windows(texts=names or (SHIPPED,), length=length, windows=tuple(windows))


def _tokens(document: Document, tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    """Every token of a document and the UTF-8 bytes of its text."""
    for piece in document:
        ids, ends = tokenizer.encode_with_ends(piece)
        codes = np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), np.uint32)
        lengths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
        # Tokens may be parts of one character: all but the first of them count no bytes.
        bytes_until = np.concatenate([[0], np.cumsum(lengths)])[np.maximum.accumulate(ends)]
        yield from zip(ids, np.diff(bytes_until, prepend=0).tolist(), strict=True)


def _cut(
    tokens: Iterator[tuple[int, int]], begin: list[int], length: int
) -> Iterator[tuple[Window, int]]:
    """Windows and how many tokens of text each has."""
    while chunk := list(islice(tokens, length - len(begin))):
        ids, sizes = zip(*chunk, strict=True)
        predicted = sizes if begin else sizes[1:]
        window = Window(ids=np.array([*begin, *ids], np.int32), predicted_bytes=sum(predicted))
        yield window, len(ids)


def _warn_of_short_windows(paths: Sequence[Path], windows: Sequence[Window], length: int) -> None:
    longest = max(len(window.ids) for window in windows)
    if longest < length:
        names = ", ".join(str(path) for path in paths) or SHIPPED
        warnings.warn(
            f"{names}: at most {longest} tokens in a row, fewer than the window of {length}: with "
            "so little context the figures are worse than on longer texts",
            stacklevel=2,
        )
