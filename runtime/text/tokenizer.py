"""Text to token ids and back, and what the files beside tokenizer.json say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shoal.graphs.errors import BundleError, InputError
from shoal.graphs.input_files import LONGEST_CONFIG, decode_text, read_bytes

_TOKENIZER, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


class Tokenizer:
    """The tokenizer of a bundle.

    Args:
        path: tokenizer.json.
        content: of that file, if it is not on the disk.
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
        add_bos: bool = False,
        bos: str | None = None,
    ) -> None:
        from tokenizers import Tokenizer as Backend  # 10 ms that ids alone do not need

        try:
            if content is None:
                self._backend = Backend.from_file(str(path))
            else:
                self._backend = Backend.from_buffer(content)
        except Exception as error:  # the library raises plain Exception
            reason = " ".join(str(error).split())[:200]
            raise BundleError(
                f"{path}: the tokenizers library cannot read it ({reason}); upgrade tokenizers or "
                "re-export the bundle"
            ) from error
        # Both belong to training batches and would cut or lengthen a prompt.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._bos_id = self.token_id(bos) if add_bos and bos is not None else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: any text.
            add_special_tokens: whether to add the tokens that begin a text (text that a chat
                template has rendered holds them already).

        Raises:
            InputError: ``text`` is no text, or holds characters that UTF-8 cannot express.
        """
        if not isinstance(text, str):
            raise InputError(f"encode expects text, found {type(text).__name__}")
        try:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError) as error:  # lone surrogates
            raise InputError("encode expects valid Unicode text, found lone surrogates") from error
        ids: list[int] = encoding.ids
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
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, [end for _, end in encoding.offsets]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_id(self, token: str) -> int | None:
        """Id of the token that is written exactly like this, None if there is none."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def special_token_id(self, text: str) -> int | None:
        """Id of the special token ``text``, None if it is no special token."""
        added = self._backend.get_added_tokens_decoder()
        return next(
            (id_ for id_, token in added.items() if token.special and token.content == text), None
        )


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder: tokenizer.json, and tokenizer_config.json if there is one.

    Raises:
        BundleError: one of the two cannot be read.
    """
    return tokenizer_of(tokenizer_files(folder), folder)


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """What ``tokenizer_of`` takes, as far as a folder has it."""
    paths = [folder / name for name in (_TOKENIZER, _TOKENIZER_CONFIG)]
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def tokenizer_of(files: Mapping[str, bytes], where: Path) -> Tokenizer:
    """The tokenizer that files describe, wherever they come from.

    Args:
        files: content of tokenizer.json, and of tokenizer_config.json if there is one.
        where: what they belong to, for messages.

    Raises:
        BundleError: one of the two cannot be read.
    """
    content = files.get(_TOKENIZER_CONFIG, b"{}")
    config = parse_json_object(content, where / _TOKENIZER_CONFIG)
    return Tokenizer(
        where / _TOKENIZER,
        content=files.get(_TOKENIZER),
        add_bos=config.get("add_bos_token") is True,
        bos=special_tokens(config).get("bos_token"),
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file.

    Raises:
        BundleError: there is none in it.
    """
    try:
        content = read_bytes(path, LONGEST_CONFIG)
    except OSError as error:
        raise _no_object(path) from error
    return parse_json_object(content, path)


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


def _no_object(path: Path) -> BundleError:
    return BundleError(f"{path}: expected a JSON object; re-export the bundle")


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens that tokenizer_config.json names, such as bos_token, as texts."""
    named = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and not key.startswith("add_") and isinstance(text, str):
            named[key] = text
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
