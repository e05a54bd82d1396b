"""A dialogue in a file, which another process can continue.

The file is a saved context; its note holds what was said and the token ids it became.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.graphs.errors import InputError
from shoal.runtime.dialogue.dialogue import Dialogue
from shoal.runtime.engine.token_ids import check_tokens
from shoal.runtime.model import Model


def open_dialogue(
    model: Model, options: dict[str, Any], path: Path, *, chat: bool, system: str | None
) -> Dialogue:
    """The dialogue in a file, or a new one that will be kept there.

    Args:
        model: the open bundle.
        options: sampling options of ``Model.generate``.
        path: the file, which need not exist.
        chat: whether turns go through the chat template.
        system: system message of a new chat.

    Raises:
        InputError: the file is damaged, of another bundle, of the other form of dialogue, or there
            is a system message for a chat that has begun.
    """
    if not path.exists():
        return Dialogue(model, options, chat=chat, system=system, session=path)
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
    dialogue = Dialogue(model, options, chat=chat, system=system, session=path)
    ids = check_tokens(note["ids"], model.manifest.model.vocab_size) if note["ids"] else []
    dialogue.go_on(context, ids, note["messages"])
    return dialogue


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and all(isinstance(part, str) for item in message.items() for part in item)
        for message in value
    )
