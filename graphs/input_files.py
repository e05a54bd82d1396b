"""Files that people name: regular ones only, and texts, which may also come through pipes.

Text is UTF-8; a byte order mark, with which some editors begin a file, is no part of it. Whatever
is read whole has a bound, and so has what an endless pipe or a compressed text can bring.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import lzma
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

LONGEST_TEXT = 16 << 20
"""Bytes of a prompt or another text that is used whole."""

LONGEST_CONFIG = 16 << 20
"""Bytes of a config or a chat template."""

LONGEST_PIPE = 1 << 30
"""Bytes of a text from a pipe."""

_FEWEST_UNPACKED = 64 << 20
_UNPACKED_PER_BYTE = 100  # prose is packed to a fifth, logs to a fiftieth


class TextError(Exception):
    """Why a text cannot be read."""


def open_regular(path: Path) -> IO[bytes]:
    """Open a file that must not be a pipe, which would hang, or a device.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    # Opening a pipe waits for its other end, unless asked not to.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "expected a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, longest: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read, is no regular file, or longer.
    """
    with open_regular(path) as file:
        content = file.read(longest + 1)
    if len(content) > longest:
        raise OSError(errno.EFBIG, f"expected at most {longest} bytes", str(path))
    return content


def read_json(path: Path, longest: int = LONGEST_CONFIG) -> Any:
    """The value in a JSON file.

    Args:
        path: the file.
        longest: bytes it may have.

    Raises:
        OSError: see ``read_bytes``.
        ValueError: it is no JSON, or not in UTF-8.
        RecursionError: it is too deep.
    """
    return json.loads(decode_text(read_bytes(path, longest)))


def decode_text(content: bytes) -> str:
    """The text that UTF-8 bytes stand for, without a byte order mark.

    Raises:
        UnicodeDecodeError: they are no UTF-8.
    """
    return content.decode("utf-8-sig")


def strip_mark(text: str) -> str:
    """A text without the byte order mark it may begin with."""
    return text.removeprefix("\ufeff")


def read_text(path: Path, longest: int = LONGEST_TEXT) -> str:
    """A whole text; see ``open_text``.

    Args:
        path: the file or pipe.
        longest: characters it may have.

    Raises:
        TextError: it cannot be read, or has more.
    """
    with open_text(path) as file:
        text = file.read(longest + 1)
    if len(text) > longest:
        raise TextError(f"expected at most {longest} characters, found more")
    return text


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text, compressed if its name ends in .xz or .gz.

    Args:
        path: a regular file or a pipe.

    Raises:
        TextError: it cannot be opened, or reading it in the block fails or brings too much.
    """
    try:
        with path.open("rb") as packed, _text_of(packed, path.suffix) as file:
            yield file
    except UnicodeDecodeError as error:
        raise TextError(
            f"expected UTF-8 text, found other bytes: {error.reason}, convert it"
        ) from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise TextError(getattr(error, "strerror", None) or str(error)) from error


def _text_of(packed: IO[bytes], suffix: str) -> IO[str]:
    found = os.fstat(packed.fileno())
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
        raise OSError(errno.EINVAL, "expected a regular file or a pipe")
    source: Any = packed
    if suffix in (".xz", ".gz"):
        unpack: Any = lzma.LZMAFile if suffix == ".xz" else _gzip_file
        most = max(_FEWEST_UNPACKED, _UNPACKED_PER_BYTE * found.st_size)
        source = io.BufferedReader(_Bounded(unpack(packed), most))
    elif stat.S_ISFIFO(found.st_mode):
        source = io.BufferedReader(_Bounded(packed, LONGEST_PIPE))
    return io.TextIOWrapper(source, encoding="utf-8-sig")


def _gzip_file(packed: IO[bytes]) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=packed)


class _Bounded(io.RawIOBase):
    """A stream that fails when it has brought too many bytes."""

    def __init__(self, source: Any, most: int) -> None:
        self._source = source
        self._most = self._left = most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._source.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise OSError(errno.EFBIG, f"expected at most {self._most} bytes of text, found more")
        return count
