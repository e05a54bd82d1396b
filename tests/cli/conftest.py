"""A model that needs no onnxruntime: it answers with the last words of its prompt, backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from tests.small_model import SMALL_MODEL

from shoal.graphs.errors import InputError
from shoal.graphs.manifest import FileInfo, Manifest, TensorInfo
from shoal.graphs.recipes import RECIPES
from shoal.runtime.commands import bench_command, run_command

HEAD = TensorInfo(dtype="uint8", shape=(2_000_000,), offset=0, size=2_000_000)
LIMIT = SMALL_MODEL.max_position_embeddings


def tiny_manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "shoal_version": "0.1.0",
        "weights": "int8",
        "model": SMALL_MODEL,
        "graphs": {"decoder": "decoder.onnx", "head": "head.onnx"},
        "files": {"weights.bin": FileInfo(size=2_100_000, sha256="0" * 64)},
        "tensors": {"lm_head.weight": HEAD},
        "token_read_bytes": 520_000,
        "config": {},
        "formats": dict(RECIPES["int8"].formats),
        "notes": ("only the first MTP module was exported",),
    }
    return Manifest(**(fields | changes))


class FakeContext:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.calls: list[str] = []

    def prefill(self, ids: Sequence[int]) -> None:
        assert len(self.tokens) + len(ids) <= LIMIT
        self.tokens += ids
        self.calls.append(f"prefill {len(ids)}")

    def decode(self, token: int) -> None:
        assert len(self.tokens) < LIMIT
        self.tokens.append(token)

    def rewind(self, length: int) -> None:
        assert length <= len(self.tokens)
        del self.tokens[length:]


class FakeGeneration:
    """Streams the prompt backwards, one character a token."""

    draft_stats = None
    logprobs = None

    def __init__(
        self, ids: list[int], context: FakeContext, limit: int, progress: Callable[[int, int], None]
    ) -> None:
        held = context.tokens
        same = 0
        while same < min(len(held), len(ids) - 1) and held[same] == ids[same]:
            same += 1
        self.prompt_tokens, self.reused_tokens = len(ids), same
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.interrupt_at: int | None = None
        self._ids, self._context, self._limit, self._progress = ids, context, limit, progress

    def pieces(self) -> Iterator[str]:
        self._context.tokens = list(self._ids)
        self._progress(len(self._ids), len(self._ids))
        for token in self._ids[::-1][: self._limit]:
            if len(self.tokens) == self.interrupt_at:
                raise KeyboardInterrupt
            self.tokens.append(token)
            yield chr(token)
        self.finish_reason = "length" if len(self._ids) > self._limit else "stop_token"
        self._context.tokens += self.tokens[:-1]


class FakeModel:
    threads = 2
    kernels = "portable"
    cache_type = "float32"
    max_context = LIMIT

    def __init__(self, *, template: bool = False) -> None:
        self.has_chat_template = template
        self.manifest = tiny_manifest()
        self.interrupt_at: int | None = None
        self.generations: list[FakeGeneration] = []
        self.options: dict[str, Any] = {}
        self.contexts: list[FakeContext] = []

    def encode(
        self, text: str, *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> list[int]:
        return [ord(letter) for letter in text]

    def chat_ids(
        self, messages: list[dict[str, str]], *, max_tokens: int | None = None
    ) -> list[int]:
        text = "".join(f"{message['role'][0]}:{message['content']};" for message in messages)
        return self.encode(text + "a:")

    def new_context(self) -> FakeContext:
        self.contexts.append(FakeContext())
        return self.contexts[-1]

    def generate(
        self,
        ids: list[int],
        *,
        context: FakeContext | None,
        progress: Callable[[int, int], None],
        max_new_tokens: int,
        **options: Any,
    ) -> FakeGeneration:
        if len(ids) > LIMIT:
            raise InputError(f"context: expected at most {LIMIT} tokens, found {len(ids)}; less")
        self.options = options
        generation = FakeGeneration(ids, context or FakeContext(), max_new_tokens, progress)
        generation.interrupt_at = self.interrupt_at
        self.generations.append(generation)
        return generation


@pytest.fixture
def manifest() -> Manifest:
    return tiny_manifest()


@pytest.fixture
def base_model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    return installed(monkeypatch, FakeModel())


@pytest.fixture
def chat_model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    return installed(monkeypatch, FakeModel(template=True))


def installed(monkeypatch: pytest.MonkeyPatch, model: FakeModel) -> FakeModel:
    for module in (run_command, bench_command):
        monkeypatch.setattr(module, "open_bundle", lambda *args, **kwargs: model)
    return model
