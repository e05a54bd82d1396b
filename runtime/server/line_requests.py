"""A line in, an answer out: a protocol for pipes and sockets.

Every line gets exactly one answer, empty and malformed ones too.

plain   the line is the prompt (UTF-8). The answer is sent as it is decided and ends with a line
        break and a zero byte, which appears in no answer. What goes wrong is answered with a line
        ``error: ...``.
JSON    the line is an object: {"prompt": "..."}, and optionally "id" (text or number, sent back),
        "messages" (a chat, instead of the prompt) and sampling options. The answer is one line:
        an object with "text" and figures, or with "error".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from shoal.graphs.errors import InputError, RuntimeFailure, ShoalError
from shoal.graphs.input_files import decode_text
from shoal.runtime.dialogue.answer import Answer, Write, answer_report, stream_answer
from shoal.runtime.dialogue.dialogue import Dialogue, first_messages
from shoal.runtime.generate import Generation
from shoal.runtime.model import Model

LONGEST_LINE_BYTES = 1 << 20
"""Lines may be this long, their end not counted."""

END_OF_ANSWER = b"\n\0"

Send = Callable[[bytes], object]
"""Sends bytes to whoever asked; nothing, to find out whether they are still there."""

_OPTIONS = frozenset({"max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop"})
_KEYS = _OPTIONS | {"id", "prompt", "messages"}


class LineRequests:
    """Answers lines, one at a time; prompts that start like the one before are not read again.

    Args:
        model: the open bundle.
        options: sampling options of ``Model.generate``.
        chat: put prompts into the chat template; else continue plain text.
        system: system message of each chat.
        as_json: lines are JSON objects.
        dialogue: one dialogue that all lines continue; None: lines are independent.
        answered: called with every answer that was generated, complete or interrupted.
    """

    def __init__(
        self,
        model: Model,
        options: dict[str, Any],
        *,
        chat: bool,
        system: str | None = None,
        as_json: bool = False,
        dialogue: Dialogue | None = None,
        answered: Callable[[Answer, Generation], object] = lambda answer, generation: None,
    ) -> None:
        self._model = model
        self._options = options
        self._chat = chat
        self._system = system
        self._as_json = as_json
        self._dialogue = dialogue
        self._answered = answered
        self._context = model.new_context()

    def answer(self, line: bytes | None, send: Send) -> None:
        """Answer one line.

        Args:
            line: without its end; None for one that was too long to keep.
            send: takes the parts of the answer; what it raises ends the answer.

        Raises:
            KeyboardInterrupt: Ctrl-C ended the answer.
        """
        if self._as_json:
            send(json.dumps(self._json_reply(line, send)).encode() + b"\n")
        else:
            self._send_plain(line, send)

    def _send_plain(self, line: bytes | None, send: Send) -> None:
        has_text = False

        def write(piece: str) -> None:
            nonlocal has_text
            has_text = True
            send(piece.replace("\0", "\ufffd").encode())

        try:
            self._generate({"prompt": _decode(line)}, write)
        except (ShoalError, MemoryError) as error:
            start = "\n" if has_text else ""
            send(f"{start}error: {_one_line(error)}".encode())
        send(END_OF_ANSWER)

    def _json_reply(self, line: bytes | None, send: Send) -> dict[str, Any]:
        reply: dict[str, Any] = {}
        try:
            request = _read_object(_decode(line))
            if isinstance(request.get("id"), str | int | float):
                reply["id"] = request["id"]
            _check_request(request)
            answer, generation = self._generate(request, lambda piece: send(b""))
        except (ShoalError, MemoryError) as error:
            return reply | {"error": _one_line(error)}
        return reply | answer_report(answer, generation)

    def _generate(self, request: dict[str, Any], write: Write) -> tuple[Answer, Generation]:
        try:
            if self._dialogue is not None:
                if set(request) - {"id", "prompt"}:
                    raise InputError("request: with --session only prompt and id can be given")
                answer, generation = self._dialogue.answer(request["prompt"], write)
            else:
                ids, options = self._ids(request), self._options_of(request)
                answer, generation = stream_answer(self._model, ids, options, write, self._context)
        except (RuntimeFailure, MemoryError):
            self._context = self._model.new_context()  # gives back the memory it had
            raise
        self._answered(answer, generation)
        if answer.interrupted:
            raise KeyboardInterrupt
        return answer, generation

    def _ids(self, request: dict[str, Any]) -> list[int]:
        if "messages" in request:
            return self._model.chat_ids(request["messages"])
        if not self._chat:
            return self._model.encode(request["prompt"])
        prompt = {"role": "user", "content": request["prompt"]}
        return self._model.chat_ids([*first_messages(self._system), prompt])

    def _options_of(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._options | {key: request[key] for key in _OPTIONS & set(request)}


def _decode(line: bytes | None) -> str:
    if line is None:
        raise InputError(
            f"line: expected at most {LONGEST_LINE_BYTES} bytes, found more; send a shorter prompt"
        )
    try:
        text = decode_text(line)
    except UnicodeError as error:
        raise InputError("line: expected UTF-8 text, found other bytes; convert it") from error
    if not text.strip():
        raise InputError("line: expected a prompt, found nothing; send text")
    return text


def _read_object(text: str) -> dict[str, Any]:
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f'line: expected JSON such as {{"prompt": "Hello"}} ({error})') from error
    if not isinstance(request, dict):
        raise InputError('line: expected an object such as {"prompt": "Hello"}; send that')
    return request


def _check_request(request: dict[str, Any]) -> None:
    """Refuse a request without a prompt or messages, or with unknown keys."""
    unknown = sorted(set(request) - _KEYS)
    if unknown:
        raise InputError(
            f"request: unknown key {unknown[0]!a}; known are {', '.join(sorted(_KEYS))}"
        )
    if ("prompt" in request) == ("messages" in request):
        raise InputError("request: expected either prompt or messages; send one of the two")
    if "prompt" in request and not isinstance(request["prompt"], str):
        raise InputError("request: prompt must be a text; send one")
    if not request.get("prompt", "x"):
        raise InputError("request: expected a prompt, found an empty one; send text")
    stop = request.get("stop", [])
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        raise InputError('request: stop must be a list of texts such as ["\\n"]; send that')


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "out of memory; use a shorter context"
