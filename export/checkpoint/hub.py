"""Checkpoints by their name on the Hugging Face Hub: ORG/NAME becomes a folder in its cache.

Only files that an export reads are fetched, never pickles and never code. What is in the cache
(HF_HOME, HF_HUB_CACHE) is not fetched again and works offline. graphs/model_forms.py says what else
a name can stand for, and what takes precedence.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.export.checkpoint.weight_files import (
    INDEX_FILE,
    SINGLE_FILE,
    read_index,
    weights_file,
)
from shoal.export.config.model_config import CONFIG_FILE
from shoal.graphs.contract import TOKENIZER_FILES
from shoal.graphs.errors import CheckpointError
from shoal.graphs.model_forms import check_revision, model_form

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SMALL_FILES = (
    CONFIG_FILE,
    INDEX_FILE,
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tiktoken.model",
)
"""Everything an export reads but the weights, by the names in use for it."""

_HEADERS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class HubAccess:
    """What to ask the hub for, and as whom.

    Attributes:
        revision: branch, tag or commit; None for the main branch.
        token: of an account; None for HF_TOKEN or a login, if there is one.
    """

    revision: str | None = None
    token: str | None = None


Announce = Callable[[str], None]
"""Told what is about to be fetched; where there is one, a bar is shown on a terminal, too."""


def local_checkpoint(name: str | Path, access: HubAccess, announce: Announce | None = None) -> Path:
    """Where a checkpoint is; one on the hub is fetched first.

    Args:
        name: a path, or ORG/NAME on the hub.
        access: used for the hub only.
        announce: called before weights are fetched; None to fetch in silence.

    Raises:
        CheckpointError: the hub cannot be reached, or does not give the checkpoint away.
        InputError: a revision of a folder was asked for.
    """
    check_revision(name, access.revision)
    if model_form(name) != "hub":
        return Path(name)
    with _Repository(str(name), access) as repository:
        return repository.fetch(announce)


@contextlib.contextmanager
def checkpoint_headers(name: str | Path, access: HubAccess) -> Iterator[Path]:
    """A place like ``local_checkpoint``'s in which tensors have headers and maybe no values.

    Enough to say what an export would do: of a model of any size a few MB are fetched.

    Args:
        name: see ``local_checkpoint``.
        access: see ``local_checkpoint``.

    Raises:
        CheckpointError: see ``local_checkpoint``.
        InputError: see ``local_checkpoint``.
    """
    check_revision(name, access.revision)
    if model_form(name) != "hub":
        yield Path(name)
        return
    with tempfile.TemporaryDirectory(prefix="shoal-") as temporary:
        with _Repository(str(name), access) as repository:
            folder = repository.fetch_headers(Path(temporary))
        yield folder


class _Repository:
    """A model on the hub; as a context manager it says in one line what went wrong.

    Raises:
        CheckpointError: huggingface_hub is not installed.
    """

    def __init__(self, name: str, access: HubAccess) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            from huggingface_hub import HfApi
        except ModuleNotFoundError as error:
            raise CheckpointError(
                f"{name}: no such folder, and fetching it from the Hugging Face Hub needs "
                "huggingface_hub: pip install 'shoal[export]'"
            ) from error
        self._name, self._access = name, access
        self._api: HfApi = HfApi(token=access.token)

    def __enter__(self) -> _Repository:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, CheckpointError):
            reason = _reason(error, self._name, self._access)
            if reason is not None:
                raise CheckpointError(f"{self._name}: {reason}") from error

    def fetch(self, announce: Announce | None) -> Path:
        """Everything an export needs; returns the folder in the cache."""
        folder = self._fetch_small_files()
        weights = self._weight_files(folder)
        to_fetch = self._bytes_to_fetch(folder, weights)
        if announce is not None and to_fetch:
            announce(f"fetching {self._name}, {to_fetch / 1e6:.1f} MB")
        bar = None if announce is not None and sys.stderr.isatty() else _hidden_bar()
        return Path(
            self._api.snapshot_download(
                self._name, revision=folder.name, allow_patterns=weights, tqdm_class=bar
            )
        )

    def fetch_headers(self, temporary: Path) -> Path:
        """A folder below ``temporary`` whose weights, if not in the cache, are holes in files."""
        source = self._fetch_small_files()
        weights = self._weight_files(source)
        if all((source / file).exists() for file in weights):
            return source
        folder = temporary / self._name
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
            list(pool.map(lambda file: self._write_hole(folder, file, source.name), weights))
        return folder

    def _fetch_small_files(self) -> Path:
        folder = Path(
            self._api.snapshot_download(
                self._name,
                revision=self._access.revision,
                allow_patterns=list(SMALL_FILES),
                tqdm_class=_hidden_bar(),
            )
        )
        if not (folder / CONFIG_FILE).exists():
            raise CheckpointError(f"{self._name}: has no {CONFIG_FILE} on the hub; check the name")
        return folder

    def _weight_files(self, folder: Path) -> list[str]:
        """Names of the weight files, all of which the hub or the cache has."""
        files = [SINGLE_FILE]
        if weights_file(self._known_files(folder)) == INDEX_FILE:
            files = list(read_index(folder / INDEX_FILE))
        if all((folder / file).exists() for file in files):
            return files
        there = set(self._api.list_repo_files(self._name, revision=folder.name))
        absent = [file for file in files if file not in there]
        if absent:
            raise CheckpointError(
                f"{self._name}: expected weights in safetensors, found no {absent[0]} on the hub; "
                "choose another revision or convert the model"
            )
        return files

    def _known_files(self, folder: Path) -> set[str]:
        """What the cache has, with the single file if the hub has one beside an index."""
        cached = {path.name for path in folder.iterdir()}
        if SINGLE_FILE in cached or INDEX_FILE not in cached:
            return cached
        try:
            found = self._api.file_exists(self._name, SINGLE_FILE, revision=folder.name)
        except Exception:  # of several libraries; what is in the cache needs no answer
            if not cached.issuperset(read_index(folder / INDEX_FILE)):
                raise
            return cached
        return cached | {SINGLE_FILE} if found else cached

    def _bytes_to_fetch(self, folder: Path, weights: list[str]) -> int:
        """How much is not in the cache yet; refuses what does not fit on the disk."""
        if all((folder / file).exists() for file in weights):
            return 0
        files = self._api.snapshot_download(
            self._name,
            revision=folder.name,
            allow_patterns=weights,
            dry_run=True,
            tqdm_class=_hidden_bar(),
        )
        to_fetch = sum(file.file_size or 0 for file in files if file.will_download)
        free = shutil.disk_usage(folder).free
        if to_fetch > free:
            raise CheckpointError(
                f"{self._name}: needs {to_fetch / 1e9:.1f} GB in {folder.parents[1]}, of which "
                f"{free / 1e9:.1f} GB are free; free some space or set HF_HOME"
            )
        return to_fetch

    def _write_hole(self, folder: Path, file: str, revision: str) -> None:
        """A safetensors file with the header of the one on the hub and zeros without blocks."""
        found = self._api.parse_safetensors_file_metadata(self._name, file, revision=revision)
        entries: dict[str, Any] = {
            name: {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": list(tensor.data_offsets),
            }
            for name, tensor in found.tensors.items()
        }
        header = json.dumps(entries).encode()
        end = max((tensor.data_offsets[1] for tensor in found.tensors.values()), default=0)
        with (folder / file).open("wb") as hole:
            hole.write(len(header).to_bytes(8, "little") + header)
            hole.truncate(8 + len(header) + end)


def _hidden_bar() -> type[Any]:
    """Progress that is not shown: a log has no use for a bar."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class HiddenBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

    return HiddenBar


def _reason(error: Exception, name: str, access: HubAccess) -> str | None:
    """What went wrong and what to do about it; None for what did not come from the hub."""
    from huggingface_hub import errors
    from huggingface_hub.constants import ENDPOINT

    if isinstance(error, errors.GatedRepoError):
        return (
            f"its owners let only those read it who asked: do so on {ENDPOINT}/{name}, then give "
            "--token or set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no such folder here and no such public model on {ENDPOINT}; check the name, and "
            "give --token or set HF_TOKEN for a private one"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {access.revision} on {ENDPOINT}; check --revision"
    if isinstance(error, errors.HFValidationError):
        return "no such folder here and no possible name on the Hugging Face Hub; check the path"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        advice = "check --token and HF_TOKEN" if status in (401, 403) else "try again later"
        return f"{ENDPOINT} refused with status {status}; {advice}"
    if isinstance(error, (errors.SafetensorsParsingError, errors.NotASafetensorsRepoError)):
        return "expected weights in safetensors, found other content; choose another revision"
    unreachable = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.DryRunError)
    if isinstance(error, (*unreachable, errors.HTTPError)):  # type: ignore[attr-defined]
        return (
            f"no such folder here, {ENDPOINT} cannot be reached and the cache has no complete "
            "copy; check the connection and HF_HUB_OFFLINE, or give the folder of a copy"
        )
    if isinstance(error, OSError):
        return f"cannot be fetched: {error.strerror or error}; check the cache (HF_HOME)"
    return None
