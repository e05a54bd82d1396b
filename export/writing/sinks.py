"""Where quantized weights go: into a new weights.bin, or against an existing one.

Both sinks take the tensors in the order of the plan, a chunk at a time, so that no tensor need be
in memory whole and the output is written once, from start to end.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.export.writing.folder import writing
from shoal.export.writing.journal import ResumePoint
from shoal.graphs.contract import WEIGHTS_FILE
from shoal.graphs.errors import ExportError
from shoal.graphs.manifest import FileInfo, TensorInfo
from shoal.graphs.output_files import check_file_size
from shoal.graphs.passes.weights import WeightPlan

Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, what is being done)."""


_HASH_BYTES = 1 << 24


class WeightSink(Protocol):
    """Takes every tensor of the plan once, in order."""

    def write(self, name: str, chunks: Iterable[NDArray[np.generic]]) -> None:
        """Take tensor ``name`` as consecutive pieces of its bytes."""


class FileSink:
    """Writes weights.bin sequentially and hashes it on the way.

    With ``resume`` it continues a file whose beginning is complete.

    Args:
        work: the folder to write it to.
        target: the bundle it is for, named in errors.
        plan: every tensor and its place.
        progress: told about every chunk.
        resume: what is there already; None begins the file.
    """

    def __init__(
        self,
        work: Path,
        target: Path,
        plan: WeightPlan,
        progress: Progress,
        resume: ResumePoint | None = None,
    ) -> None:
        position = 0 if resume is None else resume.position
        with writing(target):
            self._file = (work / WEIGHTS_FILE).open("r+b" if position else "wb")
        self._target = target
        self._total_bytes = plan.total_bytes
        self._progress = progress
        self._hash = hashlib.sha256()
        self._position = position
        self._pending = iter(
            [
                (name, info)
                for name, info in plan.tensors.items()
                if not position or info.offset + info.size > position
            ]
        )
        try:
            with writing(target):
                check_file_size(self._file.fileno(), plan.total_bytes)
            if resume is not None:
                self._hash_beginning(resume)
        except BaseException:
            self._file.close()
            raise

    def reached(self, *, sync: bool) -> tuple[int, str]:
        """How many bytes were written, and their sha256; out of this process's hands.

        Args:
            sync: whether they must be on disk before this returns.
        """
        with writing(self._target):
            self._file.flush()
            if sync:
                os.fsync(self._file.fileno())
        return self._position, self._hash.copy().hexdigest()

    def _hash_beginning(self, resume: ResumePoint) -> None:
        left = resume.position
        while left:
            data = self._file.read(min(left, _HASH_BYTES))
            if not data:
                raise ExportError(
                    f"{self._file.name}: ends {left} bytes before the journal says; export "
                    "without --resume"
                )
            self._hash.update(data)
            left -= len(data)
        if self._hash.hexdigest() != resume.sha256:
            raise ExportError(
                f"{self._file.name}: is not what the journal was written for; export without "
                "--resume"
            )
        self._file.truncate(self._position)

    def write(self, name: str, chunks: Iterable[NDArray[np.generic]]) -> None:
        """Append tensor ``name`` at its planned offset."""
        expected, info = next(self._pending, (None, None))
        assert info is not None, f"{name} written after the last tensor"
        assert name == expected, f"{name} written where {expected} is due"
        self._append(bytes(info.offset - self._position))
        for chunk in chunks:
            self._append(_raw_bytes(chunk))
            self._progress(self._position, self._total_bytes, name)
        written = self._position - info.offset
        assert written == info.size, f"{name}: {written} bytes written, {info.size} planned"

    def close(self) -> None:
        """Close the file, complete or not."""
        with contextlib.suppress(OSError):  # of an incomplete file, which is an error already
            self._file.close()

    def finish(self) -> FileInfo:
        """Flush; the size and sha256 of the whole file."""
        assert next(self._pending, None) is None, "every planned tensor is written"
        size, sha256 = self.reached(sync=False)  # folder.py puts every file on disk
        return FileInfo(size=size, sha256=sha256)

    def _append(self, data: bytes | memoryview) -> None:
        with writing(self._target):
            self._file.write(data)
        self._hash.update(data)
        self._position += len(data)


class CompareSink:
    """Compares every tensor with the weights.bin of an existing bundle."""

    def __init__(
        self, path: Path, tensors: dict[str, TensorInfo], total_bytes: int, progress: Progress
    ) -> None:
        self._file = path.open("rb")
        self._tensors = tensors
        self._total_bytes = total_bytes
        self._progress = progress
        self.differing: list[str] = []

    def write(self, name: str, chunks: Iterable[NDArray[np.generic]]) -> None:
        """Compare tensor ``name`` with what the bundle holds; remember it if they differ."""
        info = self._tensors.get(name)
        offset, same = 0, info is not None
        if info is not None:
            self._file.seek(info.offset)
        for chunk in chunks:  # always consumed: the fidelity pass rides on it
            data = _raw_bytes(chunk)
            same = same and self._file.read(len(data)) == data
            offset += len(data)
            if info is not None:
                self._progress(info.offset + offset, self._total_bytes, name)
        if not same or (info is not None and offset != info.size):
            self.differing.append(name)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _raw_bytes(chunk: NDArray[np.generic]) -> memoryview:
    """The bytes of an array, without copying it where it is contiguous."""
    return np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
