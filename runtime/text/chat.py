"""Chat templates: messages to the text the model was trained on, as transformers renders them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from shoal.graphs.errors import BundleError, InputError

Message = Mapping[str, Any]
"""A message: {"role": "user", "content": "text"}; templates may read more keys."""

_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A template in a sandbox: it can read what it is given and nothing else.

    Args:
        source: Jinja source.
        special_tokens: variables such as bos_token.
        where: file it came from, for messages.

    Raises:
        BundleError: the source is not Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str) -> None:
        self._special_tokens = dict(special_tokens)
        self._where = where
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise BundleError(
                f"{where}: the chat template cannot be read ({_reason(error)}); re-export the "
                "bundle from a checkpoint with a correct one"
            ) from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation.

        Args:
            messages: at least one message, the oldest first.
            add_generation_prompt: whether to end with what begins the model's answer.

        Raises:
            InputError: ``messages`` is empty, or the template refuses it.
        """
        checked = [_check_message(message) for message in _check_list(messages)]
        try:
            return self._template.render(
                messages=checked,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except Exception as error:  # a template can fail in any way an expression can
            raise InputError(
                f"messages: the chat template refuses them ({_reason(error)}); check their roles, "
                "order and contents"
            ) from error


class _GenerationBlock(jinja2.ext.Extension):
    """Accepts ``{% generation %}``, which marks the model's words for training, as plain text."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it without ClassVar

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    # Local time without a zone: what the templates were written for.
    return datetime.datetime.now().strftime(pattern)


def _check_list(messages: object) -> Sequence[object]:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InputError(
            'messages must be a list such as [{"role": "user", "content": "Hello"}] with at least '
            f"one message, found {type(messages).__name__}"
        )
    return messages


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which an answer's reasoning has the names by which templates ask for it."""
    found = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if found is None:
        return dict(message)
    return {"thinking": found, **message, "reasoning_content": found}


def _check_message(message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(
            'a message must look like {"role": "user", "content": "Hello"}, found '
            f"{type(message).__name__} without a role"
        )
    return _with_reasoning(message)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
