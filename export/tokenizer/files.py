"""The tokenizer of a checkpoint as files of a bundle, where tokenizer.json is always there.

Families that publish only tiktoken.model or SentencePiece's tokenizer.model have it converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from shoal.export.tokenizer.sentencepiece_model import SENTENCEPIECE_FILE, read_sentencepiece
from shoal.export.tokenizer.special_tokens import read_object
from shoal.export.tokenizer.tiktoken_model import TIKTOKEN_FILE, read_tiktoken
from shoal.graphs.contract import TOKENIZER_FILES
from shoal.graphs.errors import CheckpointError
from shoal.graphs.input_files import LONGEST_CONFIG, read_bytes
from shoal.graphs.text.library_tokenizer import LibraryTokenizer, library_faults
from shoal.graphs.text.tokenizer_file import LONGEST_TOKENIZER_FILE

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_ADVICE = "download it again"


def tokenizer_files(folder: Path, vocab_size: int) -> dict[str, bytes]:
    """Content of the bundle's tokenizer files by name; none for a checkpoint without a tokenizer.

    Args:
        folder: the checkpoint.
        vocab_size: of config.json.

    Raises:
        CheckpointError: a file cannot be read or converted.
    """
    paths = [folder / name for name in TOKENIZER_FILES]
    contents = {path.name: _read(path) for path in paths if path.is_file()}
    if TOKENIZER_FILE not in contents:
        tokenizer = _converted(folder, vocab_size)
        if tokenizer is not None:
            contents[TOKENIZER_FILE] = tokenizer.to_str(pretty=False).encode("utf-8")
    return contents


def check_tokenizer(files: Mapping[str, bytes], where: Path) -> None:
    """Refuse a checkpoint whose tokenizer a bundle of it could not use.

    Args:
        files: content of its tokenizer files by name.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: tokenizer.json describes no tokenizer.
    """
    if TOKENIZER_FILE in files:
        read_tokenizer(files[TOKENIZER_FILE], where / TOKENIZER_FILE)


def _read(path: Path) -> bytes:
    longest = LONGEST_TOKENIZER_FILE if path.name == TOKENIZER_FILE else LONGEST_CONFIG
    try:
        return read_bytes(path, longest)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); {_ADVICE}"
        ) from error


def read_tokenizer(content: bytes, where: Path) -> LibraryTokenizer:
    """The tokenizer that a tokenizer.json describes.

    Raises:
        CheckpointError: it describes none.
    """
    return LibraryTokenizer(content, where, error=CheckpointError, advice=_ADVICE)


def _converted(folder: Path, vocab_size: int) -> Tokenizer | None:
    tiktoken, sentencepiece = folder / TIKTOKEN_FILE, folder / SENTENCEPIECE_FILE
    if not tiktoken.is_file() and not sentencepiece.is_file():
        return None
    path = folder / TOKENIZER_CONFIG_FILE
    config = read_object(path)
    added = _added_tokens(path, config)
    source = tiktoken if tiktoken.is_file() else sentencepiece
    with library_faults(source, CheckpointError, _ADVICE):
        if source == tiktoken:
            tokenizer = read_tiktoken(tiktoken, added, vocab_size)
        else:
            tokenizer = read_sentencepiece(sentencepiece, added, config)
    for id_, token in added.items():
        found = tokenizer.token_to_id(token.content)
        if found != id_:
            raise CheckpointError(
                f"{path}: added_tokens_decoder: expected {token.content[:80]!r} to be token {id_}, "
                f"found {found} by the vocabulary; download the tokenizer's files again"
            )
    return tokenizer


def _added_tokens(path: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The tokens that tokenizer_config.json adds to the vocabulary, by id."""
    entries = config.get("added_tokens_decoder", {})
    try:
        return {
            int(id_): AddedToken(
                entry["content"],
                special=entry.get("special", False),
                lstrip=entry.get("lstrip", False),
                rstrip=entry.get("rstrip", False),
                single_word=entry.get("single_word", False),
                normalized=False,
            )
            for id_, entry in entries.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: added_tokens_decoder: expected an object of ids and tokens, found "
            f"{type(entries).__name__} ({error!r}); download it again"
        ) from error
