"""A checkpoint of either form: a Hugging Face folder or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.export.checkpoint.gguf.config import config_of
from shoal.export.checkpoint.gguf.file import GGUF_SUFFIX, read_gguf
from shoal.export.checkpoint.gguf.tensors import GgufCheckpoint
from shoal.export.checkpoint.gguf.vocabulary import tokenizer_of
from shoal.export.checkpoint.safetensors_files import Checkpoint
from shoal.export.config.model_config import ModelConfig, load_config
from shoal.export.tokenizer.files import tokenizer_files
from shoal.export.tokenizer.special_tokens import SpecialTokens, read_special_tokens


def read_config(path: Path) -> tuple[dict[str, Any], ModelConfig]:
    """config.json of a checkpoint, as it is and as understood; of a GGUF file what it would be.

    Raises:
        CheckpointError: the GGUF file is damaged.
        ConfigError: the architecture or a key is not supported.
    """
    if not _is_gguf(path):
        return load_config(path)
    raw = config_of(read_gguf(path))
    return raw, ModelConfig.from_hf(raw, where=str(path))


def open_weights(path: Path, config: ModelConfig) -> Checkpoint:
    """The tensors of a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if _is_gguf(path):
        return GgufCheckpoint(read_gguf(path))
    return Checkpoint.open(path, config.fp8_block)


def open_tokenizer(
    path: Path, raw_config: dict[str, Any], vocab_size: int
) -> tuple[dict[str, bytes], SpecialTokens]:
    """Content of the bundle's tokenizer files by name, and the tokens that the runtime must know.

    Raises:
        CheckpointError: a file cannot be read or converted.
    """
    special = read_special_tokens(path, raw_config, vocab_size)
    if _is_gguf(path):
        return tokenizer_of(path, read_gguf(path).metadata), special
    return tokenizer_files(path, vocab_size), special


def _is_gguf(path: Path) -> bool:
    return path.suffix == GGUF_SUFFIX
