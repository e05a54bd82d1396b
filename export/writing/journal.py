"""How far an export has come, on disk beside what it has written, so that it can be continued.

The journal is replaced after every layer. It belongs to one checkpoint exported in one way:
continuing with anything else is refused, and so is continuing weights that are not, byte for byte,
those it was written for. It is a safetensors file whose metadata hold a JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shoal.export.checkpoint.stored_tensors import StoredTensors
from shoal.graphs.errors import ExportError
from shoal.graphs.passes.weights import WeightPlan
from shoal.graphs.recipes import WeightFormat

JOURNAL_FILE = "journal.safetensors"


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where to continue.

    Attributes:
        position: bytes of weights.bin that are complete.
        sha256: of those bytes.
        streams: state of the fidelity text; empty when fidelity is not measured.
    """

    position: int
    sha256: str
    streams: dict[str, Tensor]


class Journal:
    """The journal of one export."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._path = folder / JOURNAL_FILE
        self._fingerprint = fingerprint

    def read(self) -> ResumePoint | None:
        """Where to continue; None when there is nothing to continue.

        Raises:
            ExportError: the journal is another export's, or damaged.
        """
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                content = json.loads(file.metadata()["journal"])
                names = file.keys()
                streams = {name: file.get_tensor(name) for name in names}
            fingerprint = content["fingerprint"]
            point = ResumePoint(
                position=int(content["position"]), sha256=content["sha256"], streams=streams
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ExportError(
                f"{self._path}: cannot be read ({error}); export without --resume"
            ) from error
        if fingerprint != self._fingerprint:
            raise ExportError(
                f"{self._path}: belongs to another checkpoint or other options; export with the "
                "same ones, or without --resume"
            )
        return point

    def write(self, point: ResumePoint, *, sync: bool) -> None:
        """Note that everything before ``point`` is written.

        Args:
            point: where to continue.
            sync: whether the journal must be on disk before this returns.
        """
        content = {
            "fingerprint": self._fingerprint,
            "position": point.position,
            "sha256": point.sha256,
        }
        new = self._path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(save(point.streams, {"journal": json.dumps(content)}))
            if sync:
                file.flush()
                os.fsync(file.fileno())
        new.replace(self._path)

    def remove(self) -> None:
        """The export is complete."""
        self._path.unlink(missing_ok=True)


def fingerprint(
    stored: StoredTensors,
    raw_config: dict[str, Any],
    plan: WeightPlan,
    formats: dict[str, WeightFormat],
    texts: Sequence[Tensor],
) -> str:
    """Changes with everything that the bytes of the bundle depend on."""
    files = sorted({header.file for header in stored.headers.values()})
    content = [
        version("shoal"),
        raw_config,
        {name: asdict(info) for name, info in plan.tensors.items()},
        {name: asdict(stored) for name, stored in formats.items()},
        [ids_BT.tolist() for ids_BT in texts],
        [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
