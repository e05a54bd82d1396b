"""Chat templates: messages to the text the model was trained on, as transformers renders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.graphs.errors import BundleError, InputError
from shoal.runtime.text.template_budget import OverBudget
from shoal.runtime.text.template_environment import BoundedEnvironment

Message = Mapping[str, Any]
"""A message: {"role": "user", "content": "text"}; templates may read more keys."""

_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A template in a sandbox: it reads what it is given, and uses bounded time and memory.

    Args:
        source: Jinja source.
        special_tokens: variables such as bos_token.
        where: file it came from, for messages.

    Raises:
        BundleError: the source is not Jinja, too long or too deep.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str) -> None:
        self._special_tokens = dict(special_tokens)
        self._where = where
        self._environment = BoundedEnvironment()
        try:
            self._template = self._environment.read(source)
        except Exception as error:  # Jinja leaves some mistakes to Python's own compiler
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
            InputError: ``messages`` is empty, or the template refuses it or takes too much.
        """
        checked = [_check_message(message) for message in _check_list(messages)]
        variables = {
            **self._special_tokens,
            "messages": checked,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._environment.render(self._template, variables)
        except OverBudget as error:
            raise InputError(
                f"{self._where}: the chat template {error}; shorten the conversation, or take the "
                "bundle of a checkpoint whose template is simpler"
            ) from error
        except Exception as error:  # a template can fail in any way an expression can
            raise InputError(
                f"messages: the chat template refuses them ({_reason(error)}); check their roles, "
                "order and contents"
            ) from error


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
