"""A bundle folder: opened in milliseconds, checked before anything in it is believed.

Opening reads the manifest, the size of every file and the checksums of all files but weights.bin;
``Bundle.verify_files`` reads every byte. Nothing here imports onnxruntime.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shoal.graphs.cache_types import CacheType, cache_block_size, graph_role
from shoal.graphs.contract import MANIFEST_FILE, WEIGHTS_FILE
from shoal.graphs.errors import BundleError
from shoal.graphs.graph_rules import check_graph
from shoal.graphs.manifest import FileInfo, Manifest
from shoal.graphs.manifest_reader import MAX_MANIFEST_BYTES, read_manifest
from shoal.graphs.model_forms import model_form
from shoal.runtime.machine.requirements import check_machine

_READ_BYTES = 4 << 20

VerifyProgress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all and the name of the file being read."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose manifest, file sizes and graphs have been checked."""

    folder: Path  # absolute, without symbolic links
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Check everything that takes milliseconds.

        Args:
            folder: the bundle, as ``shoal export`` wrote it.

        Raises:
            BundleError: no bundle, one of its files is missing, of another size, changed (other
                than weights.bin) or outside the folder, or the manifest is not acceptable.
            RuntimeFailure: this machine is not a 64-bit little-endian one.
        """
        check_machine()
        given = Path(folder)
        try:
            return cls._open(given)
        except OSError as error:  # no permission, a damaged disk
            raise BundleError(
                f"{given}: cannot be read ({error}); check its permissions or copy it again"
            ) from error

    @classmethod
    def _open(cls, given: Path) -> Bundle:
        if not given.is_dir():
            found = "a file" if given.exists() else "nothing"
            raise BundleError(
                f"{given}: expected a bundle folder, found {found}; make one with: "
                "shoal export CHECKPOINT BUNDLE"
            )
        root = given.resolve()
        manifest = read_manifest(_manifest_bytes(root, given), str(given / MANIFEST_FILE))
        for name, info in manifest.files.items():
            _check_size(root, name, info)
        for name, info in manifest.files.items():
            if name != WEIGHTS_FILE and _sha256(root / name) != info.sha256:
                raise BundleError(f"{given / name}: {_CHANGED}")
        return cls(folder=root, manifest=manifest)

    def path(self, name: str) -> Path:
        """Path of a file of the bundle, which need not exist."""
        return self.folder / name

    def graph_path(self, role: str) -> Path:
        """Path of the graph ``role``: decoder, head or mtp."""
        return self.folder / self.manifest.graphs[role]

    def require_cache(self, cache_type: CacheType) -> None:
        """Check that there are graphs for a type of cache.

        Raises:
            BundleError: there are none.
        """
        if graph_role("decoder", cache_type) in self.manifest.graphs:
            return
        rank = self.manifest.model.kv_lora_rank
        if cache_type == "int8" and cache_block_size(rank) is None:
            reason = f"kv_lora_rank {rank} is no multiple of 16; use float16"
        else:
            reason = "it is of an older shoal; re-export it or use float32"
        raise BundleError(f"{self.folder}: has no graphs with {cache_type} caches: {reason}")

    def verify_graphs(self) -> None:
        """Check every graph in full; see ``checked_graph``."""
        for role in self.manifest.graphs:
            self.checked_graph(role)

    def checked_graph(self, role: str) -> Path:
        """Path of a graph that has been checked in full: see graphs/graph_rules.py.

        Args:
            role: decoder, head or another key of the manifest's ``graphs``.

        Raises:
            BundleError: it is none that an export of this manifest could have written.
        """
        path = self.graph_path(role)
        check_graph(path.read_bytes(), str(path), role, self.manifest)
        return path

    def verify_files(self, progress: VerifyProgress | None = None) -> None:
        """Read every byte of every file and compare the checksums.

        Args:
            progress: called about every 4 MB.

        Raises:
            BundleError: names all files that are not as they were exported.
        """
        files = self.manifest.files
        total = sum(info.size for info in files.values())
        done = 0
        changed = []
        for name, info in files.items():
            _check_size(self.folder, name, info)

            def report(count: int, name: str = name, before: int = done) -> None:
                if progress is not None:
                    progress(before + count, total, name)

            if _sha256(self.folder / name, report) != info.sha256:
                changed.append(name)
            done += info.size
        if changed:
            raise BundleError(f"{self.folder}: {', '.join(changed)}: {_CHANGED}")


_CHANGED = "sha256 does not match the manifest: changed since the export; copy the bundle again"


def _manifest_bytes(root: Path, given: Path) -> bytes:
    if not (root / MANIFEST_FILE).exists():
        is_checkpoint = model_form(root) == "folder"
        raise BundleError(
            f"{given}: expected {MANIFEST_FILE}, found "
            + (
                "a checkpoint; export it first with: shoal export CHECKPOINT BUNDLE"
                if is_checkpoint
                else "none, so this is no finished bundle; export or copy it again"
            )
        )
    path = _regular_file(root, MANIFEST_FILE)
    with path.open("rb") as file:
        return file.read(MAX_MANIFEST_BYTES + 1)


def _check_size(root: Path, name: str, info: FileInfo) -> None:
    found = _regular_file(root, name).stat().st_size
    if found != info.size:
        raise BundleError(
            f"{root / name}: expected {info.size} bytes, found {found}; copy the bundle again"
        )


def _regular_file(root: Path, name: str) -> Path:
    """The file itself, which lies in the bundle and is no device, pipe or folder."""
    path = root / name
    try:
        resolved = path.resolve(strict=True)
        mode = resolved.stat().st_mode
    except FileNotFoundError as error:
        raise BundleError(f"{path}: the file is missing; copy the bundle again") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise BundleError(f"{path}: cannot be read ({error}); copy the bundle again") from error
    if not resolved.is_relative_to(root):
        raise BundleError(
            f"{path}: leads outside the bundle, to {resolved}; replace the link by the file"
        )
    if not stat.S_ISREG(mode):
        raise BundleError(f"{path}: expected a regular file; copy the bundle again")
    return resolved


def _sha256(path: Path, report: Callable[[int], None] | None = None) -> str:
    digest = hashlib.sha256()
    count = 0
    try:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
                count += len(block)
                if report is not None:
                    report(count)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error}); copy the bundle again") from error
    return digest.hexdigest()
