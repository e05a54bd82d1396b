"""A line in, an answer out: a protocol for pipes and sockets.

Every line gets exactly one answer, empty and malformed ones too, whatever goes wrong with it.

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

from shoal.graphs.errors import InputError
from shoal.graphs.input_files import decode_text
from shoal.runtime.dialogue.answer import Answer, Write, answer_report, stream_answer
from shoal.runtime.dialogue.dialogue import Dialogue, first_messages
from shoal.runtime.engine.context import Context
from shoal.runtime.generate import Generation
from shoal.runtime.model import Model
from shoal.runtime.server.failures import ClientGone, answer_to, ends_only_its_request, log_of
from shoal.runtime.server.json_request import OPTIONS, check_request, read_object, take_id

LONGEST_LINE_BYTES = 1 << 20
"""Lines may be this long, their end not counted."""

END_OF_ANSWER = b"\n\0"

Send = Callable[[bytes], object]
"""Sends bytes to whoever asked; nothing, to find out whether they are still there."""


class LineRequests:
    """Answers lines, one at a time; prompts that start like the one before are not read again.

    Args:
        model: the open bundle.
        options: sampling options of ``Model.generate``.
        chat: put prompts into the chat template; else continue plain text.
        system: system message of each chat.
        as_json: lines are JSON objects.
        most_new_tokens: that a request may ask for; None: as many as the context holds.
        dialogue: one dialogue that all lines continue; None: lines are independent.
        log: takes a line about every request, which quotes nothing of it.
        describe: what the log says of an answer.
    """

    def __init__(
        self,
        model: Model,
        options: dict[str, Any],
        *,
        chat: bool,
        system: str | None = None,
        as_json: bool = False,
        most_new_tokens: int | None = None,
        dialogue: Dialogue | None = None,
        log: Callable[[str], object] = lambda line: None,
        describe: Callable[[Answer, Generation], str] = lambda answer, generation: "answered",
    ) -> None:
        self._model = model
        self._options = options
        self._chat = chat
        self._system = system
        self._as_json = as_json
        self._most_new_tokens = most_new_tokens
        self._dialogue = dialogue
        self._log = log
        self._describe = describe
        self._context: Context | None = None  # of the last request
        self._number = 0  # of the request that is answered, the first is 1

    def answer(self, line: bytes | None, send: Send) -> None:
        """Answer one line.

        Args:
            line: without its end; None for one that was too long to keep.
            send: takes the parts of the answer; what it raises ends the answer.

        Raises:
            ClientGone: ``send`` raised it.
            KeyboardInterrupt: Ctrl-C ended the answer.
        """
        self._number += 1
        try:
            if self._as_json:
                self._send_json(line, send)
            else:
                self._send_plain(line, send)
        except ClientGone:
            self._note("whoever asked went away")
            raise

    def _send_plain(self, line: bytes | None, send: Send) -> None:
        has_text = False

        def write(piece: str) -> None:
            nonlocal has_text
            has_text = True
            send(piece.replace("\0", "\ufffd").encode())

        try:
            self._generate({"prompt": _decode(line)}, write, send)
        except BaseException as error:
            text = self._failed(error)
            send(f"{chr(10) * has_text}error: {text}".encode(errors="replace"))
        send(END_OF_ANSWER)

    def _send_json(self, line: bytes | None, send: Send) -> None:
        reply: dict[str, Any] = {}
        try:
            request = read_object(_decode(line))
            if (id_ := take_id(request)) is not None:
                reply["id"] = id_
            check_request(request, self._most_new_tokens)
            answer, generation = self._generate(request, lambda piece: send(b""), send)
            content = json.dumps(reply | answer_report(answer, generation), allow_nan=False)
        except BaseException as error:
            content = json.dumps(reply | {"error": self._failed(error)})
        send(content.encode() + b"\n")

    def _generate(
        self, request: dict[str, Any], write: Write, send: Send
    ) -> tuple[Answer, Generation]:
        def prompt_read(done_tokens: int, total_tokens: int) -> None:
            send(b"")  # a long prompt is for nothing if nobody waits for its answer

        if self._dialogue is not None:
            if set(request) - {"id", "prompt"}:
                raise InputError(
                    "request: with --session only prompt and id can be given; leave out the rest"
                )
            answer, generation = self._dialogue.answer(request["prompt"], write, prompt_read)
        else:
            ids, options = self._ids(request), self._options_of(request)
            self._context = self._context or self._model.new_context()
            answer, generation = stream_answer(
                self._model, ids, options, write, self._context, prompt_read
            )
        self._note(self._describe(answer, generation))
        if answer.interrupted:
            raise KeyboardInterrupt
        return answer, generation

    def _failed(self, error: BaseException) -> str:
        """What to answer; raises the error again if it is not about this request alone."""
        if not ends_only_its_request(error):
            raise error
        self._note(log_of(error))
        if not isinstance(error, InputError):
            self._context = None  # gives back the memory it had
        return answer_to(error, self._number)

    def _note(self, text: str) -> None:
        self._log(f"[request {self._number}: {text}]")

    def _ids(self, request: dict[str, Any]) -> list[int]:
        most = self._model.max_context
        if "messages" in request:
            return self._model.chat_ids(request["messages"], max_tokens=most)
        if not self._chat:
            return self._model.encode(request["prompt"], max_tokens=most)
        prompt = {"role": "user", "content": request["prompt"]}
        return self._model.chat_ids([*first_messages(self._system), prompt], max_tokens=most)

    def _options_of(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._options | {key: request[key] for key in OPTIONS & set(request)}


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
