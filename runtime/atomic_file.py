"""Files that appear under their name when they are complete, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from shoal.graphs.errors import RuntimeFailure


@contextmanager
def atomic_file(path: Path, what: str) -> Iterator[IO[bytes]]:
    """Write to a file beside ``path`` that takes its name when the block is left without an error.

    Args:
        path: where; a file that is there already is replaced then.
        what: what the file holds, for the message.

    Raises:
        RuntimeFailure: the disk is full or refuses. What was there before is still there.
    """
    name = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with name.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                name.unlink()
            raise
    except OSError as error:
        raise RuntimeFailure(
            f"{path}: {what} could not be written ({error.strerror or error}); free disk space or "
            "choose another place"
        ) from error
