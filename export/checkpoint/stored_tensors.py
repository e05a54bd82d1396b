"""What every kind of file that holds a checkpoint's tensors can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from shoal.graphs.message_parts import listed


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """Where one tensor lies and what it is."""

    file: Path
    dtype: str  # the file format's name of it, such as "BF16"
    shape: tuple[int, ...]
    offset: int  # bytes, from the start of the file


class StoredTensors(Protocol):
    """The tensors of a checkpoint under their Hugging Face names, none of them kept in memory."""

    @property
    def path(self) -> Path:
        """The folder or file that was opened."""

    @property
    def headers(self) -> dict[str, TensorHeader]:
        """Header of every tensor by its name."""

    @property
    def readable(self) -> tuple[str, ...]:
        """Names of the types that can be read."""

    @property
    def fp8_block(self) -> tuple[int, int]:
        """Rows and columns of an FP8 matrix that share a scale."""

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (exclusive) of the first axis of ``name``, as float32.

        Raises:
            CheckpointError: The file has changed since it was opened, or the tensor holds NaN or
                infinite values.
        """


def problems_message(path: Path, problems: list[str], advice: str) -> str:
    """One line that names every problem of a checkpoint (beyond a hundred, their number)."""
    return f"{path}: {listed(problems)}; {advice}"
