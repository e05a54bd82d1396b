"""Lines to the service: requests changed as JSON and as text; each has exactly one answer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from tests.fuzz.formats.manifest import sealed
from tests.fuzz.fuzz_format import Samples, Use, link_bundle, require
from tests.fuzz.json_mutations import change_json, change_json_text, json_bytes
from tests.fuzz.mutations import TEXTS, change_bytes, change_text
from tests.runtime.text.chat_templates import CONVERSATIONS, TEMPLATES

from shoal.graphs.contract import MANIFEST_FILE
from shoal.graphs.errors import InputError
from shoal.runtime.opening import open_bundle
from shoal.runtime.server.line_buffer import LineBuffer
from shoal.runtime.server.line_requests import END_OF_ANSWER, LineRequests

_TEMPLATE_FILE = "chat_template.jinja"
_SOUND_LINE = b'{"prompt": "It is a truth", "max_new_tokens": 1, "temperature": 0}'
_REQUESTS: tuple[dict[str, Any], ...] = (
    {"id": "a", "prompt": "It is a truth"},
    {"id": 1, "prompt": "It is", "temperature": 0.7, "seed": 1, "top_k": 5, "top_p": 0.9},
    {"prompt": "It", "min_p": 0.1, "stop": ["\n", "."], "max_new_tokens": 2},
    *({"messages": messages, "max_new_tokens": 1} for messages in CONVERSATIONS.values()),
)


class ServiceFormat:
    """Lines to services in JSON and in plain text."""

    def __init__(self, samples: Samples) -> None:
        model = open_bundle(_chat_bundle(samples), threads=1)
        options = {"max_new_tokens": 2}
        self._json = LineRequests(model, options, chat=True, as_json=True)
        self._plain = LineRequests(model, options, chat=False)
        self._sound = self._answer_of(_SOUND_LINE)

    def prepare(self, rng: Random, folder: Path) -> Use:
        """See ``FuzzFormat``."""
        as_json = rng.random() < 0.85
        request = rng.choice(_REQUESTS)
        if as_json:
            line = change_json_text(rng, json_bytes(change_json(rng, request)))
        else:
            line = change_text(rng, "It is a truth").encode("utf-8", "surrogatepass")
        if rng.random() < 0.1:
            line = change_bytes(rng, line)
        if rng.random() < 0.02:
            line += rng.choice(TEXTS).encode("utf-8", "surrogatepass") * 100
        (folder / "line").write_bytes(line)
        return lambda: self._use(line, as_json)

    def _use(self, line: bytes, as_json: bool) -> None:
        buffer, errors = LineBuffer(), []
        buffer.feed(line)
        buffer.finish()
        while buffer.has_line:
            one = buffer.take()
            if as_json:
                answer = self._answer_of(one)
                errors += [answer["error"]] if "error" in answer else []
            else:
                text = self._text_of(one)
                errors += [text.removeprefix("error: ")] if text.startswith("error: ") else []
        require(self._answer_of(_SOUND_LINE) == self._sound, "the next line is answered otherwise")
        if errors:
            raise InputError(errors[0])

    def _answer_of(self, line: bytes | None) -> dict[str, Any]:
        sent: list[bytes] = []
        self._json.answer(line, sent.append)
        text = b"".join(sent)
        require(text.endswith(b"\n") and text.count(b"\n") == 1, f"no single line: {text[:200]!r}")
        answer = json.loads(text, parse_constant=_refuse)
        require(("text" in answer) != ("error" in answer), f"neither text nor error: {answer!a}")
        return {key: answer[key] for key in ("id", "text", "error") if key in answer}

    def _text_of(self, line: bytes | None) -> str:
        sent: list[bytes] = []
        self._plain.answer(line, sent.append)
        text = b"".join(sent)
        require(text.endswith(END_OF_ANSWER) and text.count(b"\0") == 1, f"no end: {text[:200]!r}")
        return text.removesuffix(END_OF_ANSWER).decode()


def _refuse(constant: str) -> NoReturn:
    require(False, f"{constant} in an answer, which is no JSON")
    raise AssertionError


def _chat_bundle(samples: Samples) -> Path:
    """The sample bundle with a chat template."""
    folder = samples.work / "chat"
    if folder.exists():
        return folder
    manifest = json.loads((samples.bundle / MANIFEST_FILE).read_bytes())
    template = TEMPLATES["deepseek_v2"].encode()
    digest = hashlib.sha256(template).hexdigest()
    manifest["files"][_TEMPLATE_FILE] = {"size": len(template), "sha256": digest}
    link_bundle(samples.bundle, folder, (MANIFEST_FILE,))
    (folder / _TEMPLATE_FILE).write_bytes(template)
    (folder / MANIFEST_FILE).write_bytes(sealed(manifest))
    return folder


def make(samples: Samples) -> ServiceFormat:
    """The format, from its samples."""
    return ServiceFormat(samples)
