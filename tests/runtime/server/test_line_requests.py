"""Whatever one request does is answered to it, logged with its number, and the next is answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shoal.graphs.errors import BundleError, InputError, RuntimeFailure
from shoal.runtime.server.failures import ClientGone
from shoal.runtime.server.json_request import LONGEST_ID, LONGEST_STOP, MOST_STOPS
from shoal.runtime.server.line_requests import END_OF_ANSWER, LineRequests

# What a panic in Rust arrives as: no Exception, and of a module that cannot be imported.
Panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})


class Spoken:
    """An answer that says the prompt, with a failure in it if one is wanted."""

    draft_stats = None
    logprobs = None
    reused_tokens = 0
    finish_reason = "length"

    def __init__(self, text: str, failure: BaseException | None) -> None:
        self.tokens: list[int] = []
        self.prompt_tokens = len(text)
        self._text = text
        self._failure = failure

    def pieces(self) -> Iterator[str]:
        for letter in self._text:
            self.tokens.append(ord(letter))
            yield letter
            if self._failure is not None:
                raise self._failure


class Repeating:
    """A model that says what it is asked; ``failures`` says for which prompts it fails where."""

    max_context = 100

    def __init__(self) -> None:
        self.failures: dict[tuple[str, str], BaseException] = {}
        self.contexts = 0

    def new_context(self) -> object:
        self.contexts += 1
        return object()

    def encode(self, text: str, *, max_tokens: int) -> list[int]:
        assert max_tokens == self.max_context
        if ("encode", text) in self.failures:
            raise self.failures["encode", text]
        return [ord(letter) for letter in text]

    def generate(self, ids: list[int], *, context: object, progress: Any, **options: Any) -> Spoken:
        text = "".join(map(chr, ids))
        progress(len(ids), len(ids))
        return Spoken(text, self.failures.get(("decode", text)))


@pytest.fixture
def model() -> Repeating:
    return Repeating()


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def ask(model: Repeating, log: list[str]) -> Callable[..., bytes]:
    """Asks one service one line after the other; returns all that comes back for a line."""
    services = {
        as_json: LineRequests(model, {}, chat=False, as_json=as_json, log=log.append)  # type: ignore[arg-type]
        for as_json in (False, True)
    }

    def ask(line: bytes, *, as_json: bool) -> bytes:
        parts: list[bytes] = []
        services[as_json].answer(line, parts.append)
        return b"".join(parts)

    return ask


FAILURES = [
    OverflowError("int too large to convert to float"),
    Panic("index out of bounds: the len is 3"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    RecursionError("maximum recursion depth exceeded"),
    MemoryError(),
    RuntimeFailure("onnxruntime: failed; free memory"),
    BundleError("tokenizer.json: damaged; re-export"),
    Exception("\ud800 in a message"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("where", ["encode", "decode"])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_failure_ends_one_request_only(
    as_json: bool,
    where: str,
    failure: BaseException,
    model: Repeating,
    log: list[str],
    ask: Callable[..., bytes],
) -> None:
    model.failures[where, "bad"] = failure
    good, bad = (b'{"prompt": "ok"}', b'{"prompt": "bad"}') if as_json else (b"ok", b"bad")
    before, failed, after = (ask(line, as_json=as_json) for line in (good, bad, good))
    if as_json:
        assert list(json.loads(failed)) == ["error"]
        assert failed.count(b"\n") == 1
        assert json.loads(before)["text"] == json.loads(after)["text"] == "ok"
    else:
        start = b"b\n" if where == "decode" else b""
        assert failed.startswith(start + b"error: ")
        assert failed.endswith(END_OF_ANSWER)
        assert failed.removeprefix(start).removesuffix(END_OF_ANSWER).count(b"\n") == 0
        assert before == after == b"ok" + END_OF_ANSWER
    assert log[0] == "[request 1: answered]"
    assert log[1].startswith("[request 2: failed: ")
    assert log[2:] == ["[request 3: answered]"]
    assert model.contexts == 2, "the context of a failed answer is not used again"


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(3), ClientGone()])
def test_what_ends_the_process_or_the_connection_is_passed_on(
    end: BaseException, model: Repeating, ask: Callable[..., bytes]
) -> None:
    model.failures["encode", "x"] = end
    for as_json, line in ((False, b"x"), (True, b'{"prompt": "x"}')):
        with pytest.raises(type(end)):
            ask(line, as_json=as_json)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "is too large"),
        (b'{"prompt": "x", "temperature": 1e400}', "line: the number 1e400... is too large"),
        (b'{"prompt": "x", "temperature": NaN}', "line: expected JSON, which has no NaN"),
        (b'{"prompt": "x", "id": -Infinity}', "line: expected JSON, which has no -Infinity"),
        (b'{"id": NaN, "prompt": "x"}', "line: expected JSON, which has no NaN"),
        (b'{"prompt": "x", "prompt": "y"}', "line: expected JSON such as"),
        (b'{"prompt": "x", "id": 1e999}', "is too large"),
        (b'{"prompt": "x", "id": {}}', "request: id must be a text or a number"),
        (b'{"prompt": "x", "id": "%s"}' % (b"i" * (LONGEST_ID + 1)), "request: id must be a text"),
        (b'{"prompt": "x", "stop": ["%s"]}' % (b"s" * (LONGEST_STOP + 1)), "request: stop must be"),
        (b'{"prompt": "x", "stop": [%s"s"]}' % (b'"s",' * MOST_STOPS), "request: stop must be at"),
        (b'{"prompt": "x", "%s": 1}' % (b"k" * 100_000), "request: unknown key 'kkk"),
        (b'{"prompt": "x", "logprobs": 21}', "request: logprobs must be at most 20, found 21"),
        (b'{"prompt": "x", "logprobs": %s}' % (b"9" * 900), "request: logprobs must be at most 20"),
        (b"[" * 100_000, "line: expected JSON"),
        (b'{"a":' * 100_000, "line: expected JSON"),
    ],
)
def test_what_is_out_of_bounds_is_refused_in_valid_json(
    request_: bytes, error: str, log: list[str], ask: Callable[..., bytes]
) -> None:
    content = ask(request_, as_json=True)
    reply = json.loads(content, parse_constant=pytest.fail)
    assert error in reply["error"]
    assert len(content) < 2000
    assert log == ["[request 1: refused]"]


def test_ids_come_back_as_they_were_sent(ask: Callable[..., bytes]) -> None:
    for id_ in ("7", 7, 7.5, "\ud800", "i" * LONGEST_ID):
        line = json.dumps({"id": id_, "prompt": "x"}).encode()
        assert json.loads(ask(line, as_json=True))["id"] == id_
    assert "id" not in json.loads(ask(b'{"id": null, "prompt": "x"}', as_json=True))


def test_the_log_does_not_quote_what_was_asked(
    model: Repeating, log: list[str], ask: Callable[..., bytes]
) -> None:
    model.failures["encode", "secret"] = ValueError("cannot read 'secret'")
    model.failures["encode", "secret 2"] = InputError("found 'secret'; leave it out")
    ask(b"secret", as_json=False)
    ask(b"secret 2", as_json=False)
    assert "secret" not in "".join(log)
    assert "failed: ValueError in " in log[0]
    assert __file__ in log[0]


def test_whoever_goes_while_a_prompt_is_read_ends_the_answer(
    model: Repeating, log: list[str], ask: Callable[..., bytes]
) -> None:
    service = LineRequests(model, {}, chat=False, log=log.append)  # type: ignore[arg-type]

    def send(data: bytes) -> None:
        raise ClientGone

    with pytest.raises(ClientGone):
        service.answer(b"a long prompt", send)
    assert log == ["[request 1: whoever asked went away]"]
