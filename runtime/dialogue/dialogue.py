"""What was said so far, and the context that holds it.

Earlier turns stay in the latent cache: of each new prompt only what the context does not hold yet
is computed.
"""

from __future__ import annotations

from typing import Any

from shoal.graphs.errors import InputError
from shoal.runtime.dialogue.answer import Answer, Write, stream_answer
from shoal.runtime.dialogue.session_file import SessionFile
from shoal.runtime.engine.context import Context, PrefillProgress
from shoal.runtime.generate import Generation
from shoal.runtime.model import Model

Messages = list[dict[str, str]]


class Dialogue:
    """A chat, or plain text that is continued.

    Args:
        model: the open bundle.
        options: of ``Model.generate``: sampling, stop texts, drafts.
        chat: put turns into the chat template; else continue plain text.
        system: system message of the chat.
        session: file that keeps the dialogue after each turn; plain text then continues with each
            text instead of starting anew.
    """

    def __init__(
        self,
        model: Model,
        options: dict[str, Any],
        *,
        chat: bool,
        system: str | None = None,
        session: SessionFile | None = None,
    ) -> None:
        self.model = model
        self.chat = chat
        self.session = session
        self._options = options
        self._system = system
        self.reset()

    def reset(self) -> None:
        """Forget everything said so far."""
        self._context = self.model.new_context()
        self._ids: list[int] = []
        self.messages = first_messages(self._system)

    def go_on(self, context: Context, ids: list[int], messages: Messages) -> None:
        """Take over what was said before: the context that holds it, its ids and its messages."""
        self._context, self._ids, self.messages = context, ids, messages

    def save(self) -> None:
        """Keep the dialogue in its file, if it has one.

        Raises:
            RuntimeFailure: it could not be written.
        """
        if self.session is not None:
            note = {"chat": self.chat, "ids": self._ids, "messages": self.messages}
            self.session.save(self._context, note)

    def answer(
        self, text: str, write: Write, progress: PrefillProgress | None = None
    ) -> tuple[Answer, Generation]:
        """Answer a turn; a turn that fails leaves the dialogue as it was.

        Args:
            text: what the user said; if it is empty, plain text is continued.
            write: takes the pieces of the answer.
            progress: called with prompt tokens read and prompt tokens in all.

        Raises:
            InputError: the dialogue no longer fits into the context.
            RuntimeFailure: it could not be kept in its file.
        """
        turn = [*self.messages, {"role": "user", "content": text}]
        most = self.model.max_context
        ids = (
            self.model.chat_ids(turn, max_tokens=most) if self.chat else self._continued(text, most)
        )
        self._check_length(ids)
        answer, generation = stream_answer(
            self.model, ids, self._options, write, self._context, progress
        )
        before = self._ids, self.messages
        self._ids = [*ids, *generation.tokens]
        self.messages = [*turn, {"role": "assistant", "content": answer.text}]
        try:
            self.save()
        except BaseException:
            self._ids, self.messages = before
            raise
        return answer, generation

    def _check_length(self, ids: list[int]) -> None:
        """Say how to start anew where that is not obvious."""
        most = self.model.max_context
        if self.session is not None and len(ids) > most:
            raise InputError(
                f"{self.session.path}: the dialogue and this turn take {len(ids)} tokens, more "
                f"than the context's {most}; send less, or end shoal and remove the file (or name "
                "another with --session) to start anew"
            )

    def _continued(self, text: str, most: int) -> list[int]:
        if not text:
            return self._ids
        if self.session is None or not self._ids:
            return self.model.encode(text, max_tokens=most)
        more = self.model.encode(text, add_special_tokens=False, max_tokens=most)
        return [*self._ids, *more]


def first_messages(system: str | None) -> Messages:
    """The messages of a chat before its first turn."""
    return [] if system is None else [{"role": "system", "content": system}]
