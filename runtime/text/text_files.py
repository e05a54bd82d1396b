"""What a bundle has for text: its tokenizer and its chat template, read when first asked for."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.graphs.errors import InputError
from shoal.runtime.bundle import Bundle
from shoal.runtime.text.tokenizer import (
    Tokenizer,
    adds_bos,
    find_template,
    read_json_object,
    special_tokens,
)

_CONFIG = "tokenizer_config.json"

if TYPE_CHECKING:
    from shoal.runtime.text.chat import ChatTemplate


class TextFiles:
    """The tokenizer files of a bundle.

    Args:
        bundle: where they lie, if it has any.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer."""
        return "tokenizer.json" in self._bundle.manifest.files

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        return self.has_tokenizer and self._template_source is not None

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            InputError: there is none.
        """
        if not self.has_tokenizer:
            raise InputError(
                f"{self._bundle.folder}: text needs tokenizer.json, and this bundle has none; use "
                "token ids, or re-export a checkpoint that has one"
            )
        return Tokenizer(
            self._bundle.path("tokenizer.json"),
            vocab_size=self._bundle.manifest.model.vocab_size,
            add_bos=adds_bos(self._config, self._config_path),
            bos=self._special_tokens.get("bos_token"),
        )

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The chat template.

        Raises:
            InputError: there is none.
        """
        if self._template_source is None:
            raise InputError(
                f"{self._bundle.folder}: this is a base model without a chat template; give it "
                "text to continue (shoal run --prompt, or generate)"
            )
        from shoal.runtime.text.chat import ChatTemplate  # Jinja takes 40 ms that only chat needs

        source, where = self._template_source
        return ChatTemplate(source, self._special_tokens, where)

    @property
    def _special_tokens(self) -> dict[str, str]:
        return special_tokens(self._config, self._config_path)

    @property
    def _config_path(self) -> Path:
        return self._bundle.folder / _CONFIG

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        if _CONFIG not in self._bundle.manifest.files:
            return {}
        return read_json_object(self._bundle.path(_CONFIG))

    @functools.cached_property
    def _template_source(self) -> tuple[str, str] | None:
        name, bundle = "chat_template.jinja", self._bundle
        path = bundle.path(name) if name in bundle.manifest.files else None
        return find_template(path, self._config)
