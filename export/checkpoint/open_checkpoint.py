"""The one way to open a checkpoint in any of its forms: folder, GGUF file, model on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shoal.export.checkpoint.gguf.config import config_of
from shoal.export.checkpoint.gguf.file import GgufModel, read_gguf
from shoal.export.checkpoint.gguf.tensors import GgufTensors
from shoal.export.checkpoint.gguf.vocabulary import tokenizer_of
from shoal.export.checkpoint.hub import HubAccess, checkpoint_headers, local_checkpoint
from shoal.export.checkpoint.safetensors_files import SafetensorsFiles
from shoal.export.checkpoint.stored_tensors import StoredTensors
from shoal.export.config.model_config import CONFIG_FILE, ModelConfig, load_config
from shoal.export.tokenizer.files import tokenizer_files
from shoal.export.tokenizer.special_tokens import (
    SpecialTokens,
    generation_config,
    read_special_tokens,
)
from shoal.graphs.errors import CheckpointError
from shoal.graphs.model_forms import CHECKPOINT_FORMS, model_form


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint whose config was understood and whose files were found whole.

    Its tokenizer is read when it is first asked for: not everything needs one.

    Attributes:
        name: As the user gave it: a path, or ORG/NAME on the hub.
        path: The folder or GGUF file.
        raw_config: Content of config.json; of a GGUF file what it would be.
        config: The same as understood.
        tensors: All tensors; reading them is what takes time.
        gguf: Header of the GGUF file, None for a folder.
    """

    name: str
    path: Path
    raw_config: dict[str, Any]
    config: ModelConfig
    tensors: StoredTensors
    gguf: GgufModel | None = None

    @cached_property
    def tokenizer(self) -> dict[str, bytes]:
        """Content of the bundle's tokenizer files by name; empty without a tokenizer.

        Raises:
            CheckpointError: a file cannot be read or converted.
        """
        if self.gguf is not None:
            return tokenizer_of(self.path, self.gguf.metadata)
        return tokenizer_files(self.path, self.config.vocab_size)

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The tokens that begin and end a text.

        Raises:
            CheckpointError: generation_config.json cannot be read, or an id is none of the
                vocabulary.
        """
        sources = [(Path(self.config.where), self.raw_config)]
        if self.gguf is None:
            sources.insert(0, generation_config(self.path))
        return read_special_tokens(sources, self.config.vocab_size)


def open_checkpoint(
    name: str | Path, *, revision: str | None = None, token: str | None = None
) -> Checkpoint:
    """Open a checkpoint; one on the hub is fetched first.

    Args:
        name: a folder, a GGUF file, or ORG/NAME on the hub.
        revision: branch, tag or commit of one on the hub; None for the main branch.
        token: for the hub; None for HF_TOKEN or a login, if there is one.

    Raises:
        ConfigError: the architecture or a config key is not supported.
        CheckpointError: there is no checkpoint, or it is incomplete or damaged.
        InputError: a revision was given for a checkpoint that is not on the hub.
    """
    path = local_checkpoint(name, HubAccess(revision=revision, token=token))
    return _open(str(name), path)


@contextmanager
def open_headers(
    name: str | Path, *, revision: str | None = None, token: str | None = None
) -> Iterator[Checkpoint]:
    """Open a checkpoint whose tensors are not to be read: of one on the hub little is fetched.

    Args:
        name: see ``open_checkpoint``, as for the rest.
        revision: as there.
        token: as there.

    Raises:
        ShoalError: as there.
    """
    with checkpoint_headers(name, HubAccess(revision=revision, token=token)) as path:
        yield _open(str(name), path)


def _open(name: str, path: Path) -> Checkpoint:
    if model_form(path) == "gguf":
        return _open_gguf(name, path)
    if not (path / CONFIG_FILE).exists():
        raise CheckpointError(_not_a_checkpoint(path))
    raw_config, config = load_config(path)
    tensors = SafetensorsFiles.open(path, config.fp8_block)
    return Checkpoint(name=name, path=path, raw_config=raw_config, config=config, tensors=tensors)


def _open_gguf(name: str, path: Path) -> Checkpoint:
    gguf = read_gguf(path)
    raw_config = config_of(gguf)
    config = ModelConfig.from_hf(raw_config, where=str(path))
    return Checkpoint(
        name=name,
        path=path,
        raw_config=raw_config,
        config=config,
        tensors=GgufTensors(gguf, config),
        gguf=gguf,
    )


def _not_a_checkpoint(path: Path) -> str:
    if model_form(path) == "bundle":
        found = "a bundle"
    elif path.is_dir():
        found = f"a folder without {CONFIG_FILE}"
    else:
        found = "another file" if path.exists() else "no such folder"
    return (
        f"{path}: expected a checkpoint, which is {CHECKPOINT_FORMS}; found {found}; check the path"
    )
