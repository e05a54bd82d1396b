"""Text to token ids and back, and what the files beside tokenizer.json say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.graphs.errors import BundleError
from shoal.graphs.input_files import LONGEST_CONFIG, decode_text, read_bytes
from shoal.graphs.text.library_tokenizer import LibraryTokenizer
from shoal.graphs.text.tokenizer_file import LONGEST_TOKENIZER_FILE

if TYPE_CHECKING:
    from tokenizers import Encoding

_TOKENIZER, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_ADVICE = "re-export the bundle from a checkpoint with a correct one"


class Tokenizer:
    """The tokenizer of a bundle.

    Args:
        path: tokenizer.json.
        content: of that file, if it is not on the disk.
        vocab_size: of the model; None if its ids are checked elsewhere.
        add_bos: whether text begins with ``bos`` even where tokenizer.json does not say so.
            Checkpoints for LlamaTokenizerFast say it in tokenizer_config.json (add_bos_token).
        bos: the token that begins a text, None if there is none.

    Raises:
        BundleError: tokenizer.json is not one the tokenizers library can read.
    """

    def __init__(
        self,
        path: Path,
        *,
        content: bytes | None = None,
        vocab_size: int | None = None,
        add_bos: bool = False,
        bos: str | None = None,
    ) -> None:
        content = _read(path, LONGEST_TOKENIZER_FILE) if content is None else content
        self._path, self._vocab_size = path, vocab_size
        self._library = LibraryTokenizer(content, path, error=BundleError, advice=_ADVICE)
        self._bos_id = self.token_id(bos) if add_bos and bos is not None else None

    def encode(
        self, text: str, *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: any text.
            add_special_tokens: whether to add the tokens that begin a text (text that a chat
                template has rendered holds them already).
            max_tokens: refuse text that cannot be as few tokens, before it is encoded; text that
                is not much too long is encoded and may have more.

        Raises:
            InputError: ``text`` is no text, too long, or holds characters that UTF-8 cannot
                express.
            BundleError: the tokenizer fails on it, or gives ids that are none of the model's.
        """
        ids: list[int] = self._encoding(
            text, add_special_tokens=add_special_tokens, max_tokens=max_tokens
        ).ids
        if add_special_tokens and self._bos_id is not None and ids[:1] != [self._bos_id]:
            return [self._bos_id, *ids]
        return ids

    @property
    def begin_ids(self) -> list[int]:
        """What ``encode`` begins every text with: one token or none."""
        return self.encode("")[:1]

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of ``text`` without special tokens, and the character after each one's text.

        Tokens that are parts of one character all end after it.
        """
        encoding = self._encoding(text, add_special_tokens=False)
        return encoding.ids, [end for _, end in encoding.offsets]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._library.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """Id of the token that is written exactly like this, None if there is none."""
        return self._library.token_id(token)

    def token_bytes(self, id_: int) -> bytes:
        """Bytes of a token alone, which may be half a character; none for an id without a token."""
        return self._library.token_bytes(id_)

    def special_token_id(self, text: str) -> int | None:
        """Id of the special token ``text``, None if it is no special token."""
        return self._library.special_ids.get(text)

    def _encoding(self, text: str, **options: Any) -> Encoding:
        encoding = self._library.encode(text, **options)
        largest = max(encoding.ids, default=0)
        if self._vocab_size is not None and largest >= self._vocab_size:
            raise BundleError(
                f"{self._path}: expected token ids below {self._vocab_size}, found {largest}; "
                f"{_ADVICE}"
            )
        return encoding


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder: tokenizer.json, and tokenizer_config.json if there is one.

    Raises:
        BundleError: one of the two cannot be read.
    """
    return tokenizer_of(tokenizer_files(folder), folder)


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """What ``tokenizer_of`` takes, as far as a folder has it."""
    paths = [folder / name for name in (_TOKENIZER, _TOKENIZER_CONFIG)]
    return {path.name: _read(path, LONGEST_TOKENIZER_FILE) for path in paths if path.exists()}


def tokenizer_of(
    files: Mapping[str, bytes], where: Path, vocab_size: int | None = None
) -> Tokenizer:
    """The tokenizer that files describe, wherever they come from.

    Args:
        files: content of tokenizer.json, and of tokenizer_config.json if there is one.
        where: what they belong to, for messages.
        vocab_size: of the model; None if ids are checked elsewhere.

    Raises:
        BundleError: one of the two cannot be read.
    """
    path = where / _TOKENIZER_CONFIG
    config = parse_json_object(files.get(_TOKENIZER_CONFIG, b"{}"), path)
    return Tokenizer(
        where / _TOKENIZER,
        content=files.get(_TOKENIZER),
        vocab_size=vocab_size,
        add_bos=adds_bos(config, path),
        bos=special_tokens(config, path).get("bos_token"),
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file.

    Raises:
        BundleError: there is none in it.
    """
    return parse_json_object(_read(path, LONGEST_CONFIG), path)


def parse_json_object(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in the content of a file.

    Raises:
        BundleError: there is none in it.
    """
    try:
        found = json.loads(decode_text(content))
    except (ValueError, RecursionError) as error:
        raise _no_object(path) from error
    if not isinstance(found, dict):
        raise _no_object(path)
    return found


def _read(path: Path, longest: int) -> bytes:
    try:
        return read_bytes(path, longest)
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read ({error.strerror or error}); re-export the bundle"
        ) from error


def _no_object(path: Path) -> BundleError:
    return BundleError(f"{path}: expected a JSON object; re-export the bundle")


def adds_bos(config: Mapping[str, Any], path: Path) -> bool:
    """Whether tokenizer_config.json, ``config``, asks for a token that begins a text.

    Raises:
        BundleError: add_bos_token is neither true nor false.
    """
    wanted = config.get("add_bos_token")
    if not isinstance(wanted, bool | None):
        raise BundleError(
            f"{path}: add_bos_token: expected true or false, found {type(wanted).__name__}; "
            f"{_ADVICE}"
        )
    return wanted is True


def special_tokens(
    config: Mapping[str, Any], path: Path = Path(_TOKENIZER_CONFIG)
) -> dict[str, str]:
    """Special tokens that tokenizer_config.json names, such as bos_token, as texts.

    Args:
        config: content of the file.
        path: of the file, for messages.

    Raises:
        BundleError: one that every tokenizer may have is no text.
    """
    named = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and not key.startswith("add_") and isinstance(text, str):
            named[key] = text
        elif key in _SPECIAL_TOKENS and value is not None:
            raise BundleError(
                f"{path}: {key}: expected a text, or an object with content, found "
                f"{type(value).__name__}; {_ADVICE}"
            )
    return named


def find_template(
    template_file: Path | None, tokenizer_config: Mapping[str, Any]
) -> tuple[str, str] | None:
    """The source of a bundle's chat template.

    Args:
        template_file: chat_template.jinja if the bundle has one; it goes before the other.
        tokenizer_config: content of tokenizer_config.json, whose chat_template is a text or a
            list of named ones of which "default" is taken.

    Returns:
        Source and where it was found, None for a model without a template.

    Raises:
        BundleError: the file is not UTF-8, or the entry is neither of the two.
    """
    if template_file is not None:
        try:
            source = decode_text(read_bytes(template_file, LONGEST_CONFIG))
        except (OSError, ValueError) as error:
            raise BundleError(f"{template_file}: expected text; re-export the bundle") from error
        return source, str(template_file)
    where = "tokenizer_config.json: chat_template"
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
        template = named.get("default")
        if template is None:
            raise BundleError(f"{where}: expected one named default among {len(named)} templates")
    if template is None:
        return None
    if not isinstance(template, str):
        raise BundleError(f"{where}: expected a text or a list, found {type(template).__name__}")
    return template, where
