"""A dialogue in a file, which another process can continue.

The file is a saved context; its note holds what was said and the token ids it became.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shoal.graphs.errors import InputError
from shoal.runtime.dialogue.dialogue import Dialogue
from shoal.runtime.dialogue.session_file import SessionFile, open_session
from shoal.runtime.engine.token_ids import check_tokens
from shoal.runtime.model import Model


@contextmanager
def open_dialogue(
    model: Model, options: dict[str, Any], path: Path, *, chat: bool, system: str | None
) -> Iterator[Dialogue]:
    """The dialogue in a file, or a new one that will be kept there; nobody else gets it meanwhile.

    Args:
        model: the open bundle.
        options: sampling options of ``Model.generate``.
        path: the file, which need not exist.
        chat: whether turns go through the chat template.
        system: system message of a new chat.

    Raises:
        InputError: the file is damaged, of another bundle, of the other form of dialogue, another
            process has it open, or there is a system message for a chat that has begun.
    """
    with open_session(path) as session:
        dialogue = Dialogue(model, options, chat=chat, system=system, session=session)
        if not session.is_new:
            _continue(dialogue, session, system)
        yield dialogue


def _continue(dialogue: Dialogue, session: SessionFile, system: str | None) -> None:
    path, model, chat = session.path, dialogue.model, dialogue.chat
    context, note = model.load_context_and_note(path)
    if not isinstance(note.get("ids"), list) or not _are_messages(note.get("messages")):
        raise InputError(f"{path}: expected a session of shoal run, found another context")
    if note.get("chat") is not chat:
        forms = ("a chat (--chat)", "plain text (--raw)")
        expected, found = forms if chat else forms[::-1]
        raise InputError(f"{path}: expected a session of {expected}, found {found}; use that")
    if system is not None and note["messages"]:
        raise InputError(
            f"{path}: --system is for a new session, this one has begun; leave it out or name "
            "another file"
        )
    ids = check_tokens(note["ids"], model.manifest.model.vocab_size) if note["ids"] else []
    dialogue.go_on(context, ids, note["messages"])


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and all(isinstance(part, str) for item in message.items() for part in item)
        for message in value
    )
