"""An opened bundle: token ids to logits, text to text."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.graphs.contract import (
    cache_input,
    cache_output,
    expert_ids_output,
    expert_weights_output,
)
from shoal.graphs.errors import BundleError, InputError, RuntimeFailure
from shoal.graphs.manifest import Manifest
from shoal.runtime.bundle import Bundle
from shoal.runtime.context import Context, FloatArray, PrefillProgress, Routing
from shoal.runtime.generate import GenerateOptions, Generation
from shoal.runtime.sampling import SamplingOptions
from shoal.runtime.session import GraphSession, Kernels, Port, SessionSettings, choose_settings
from shoal.runtime.token_ids import TokenIds, check_token, check_tokens
from shoal.runtime.tokenizer import Tokenizer, find_template, read_json_object, special_tokens

if TYPE_CHECKING:
    from shoal.runtime.chat import ChatTemplate, Message

_EMBEDDING = "embed_tokens.weight"


def open_bundle(
    path: str | Path, *, kernels: Kernels = "auto", threads: int | None = None
) -> Model:
    """Open a bundle for running.

    Args:
        path: the bundle folder.
        kernels: form of the shoal ops: "native", "portable", or "auto" for what there is.
        threads: threads that compute; None for one per physical core available.

    Raises:
        BundleError: the bundle is damaged, incomplete or too new.
        InputError: an unknown value of an option.
        RuntimeFailure: not enough memory, or native kernels that are not there.
    """
    settings = choose_settings(kernels, threads)
    bundle = Bundle.open(path)
    if bundle.manifest.weights == "fp32":  # no native kernel is offered for its ops
        if kernels == "native":
            raise RuntimeFailure(
                f"{path}: native kernels need int8 weights, found fp32; use kernels auto or "
                "portable, or export with --weights int8"
            )
        settings = replace(settings, kernels="portable", library=None)
    return Model(bundle, settings)


class Model:
    """A model that is ready to run. Contexts of one model may be used in several threads at once.

    Args:
        bundle: where it lies.
        settings: threads and kernels.
    """

    def __init__(self, bundle: Bundle, settings: SessionSettings) -> None:
        self.bundle = bundle
        self.threads = settings.threads
        self.kernels = settings.kernels
        self._info = bundle.manifest.model
        self._decoder = GraphSession(bundle.graph_path("decoder"), settings)
        self._head = GraphSession(bundle.graph_path("head"), settings)
        _check_graphs(bundle.manifest, self._decoder, self._head)

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        return self.bundle.manifest.config

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be used, not only token ids."""
        return "tokenizer.json" in self.manifest.files

    @property
    def has_chat_template(self) -> bool:
        """Whether ``chat`` can be used."""
        return self.has_tokenizer and self._template_source is not None

    def new_context(self) -> Context:
        """An empty context."""
        return Context(self._info, self._decoder, self._head)

    def logits(self, ids: TokenIds) -> FloatArray:
        """Logits of every position in a fresh context, float32 [T,W].

        Args:
            ids: T token ids, at least one.

        Raises:
            InputError: ids that are none of this vocabulary, or more than the model can read.
            RuntimeFailure: onnxruntime or memory failed.
        """
        return self.new_context().step(ids, logits="all").logits

    def routing(self, ids: TokenIds) -> Routing:
        """Experts that each token is sent to in a fresh context; see ``logits``."""
        routing = self.new_context().step(ids, logits="none", routing=True).routing
        assert routing is not None, "routing was asked for"
        return routing

    def generate(
        self,
        ids: TokenIds,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | None = None,
        stop_tokens: Iterable[int] | None = None,
        stop: Sequence[str] = (),
        context: Context | None = None,
        progress: PrefillProgress | None = None,
    ) -> Generation:
        """Continue ``ids``; tokens are computed as they are asked for.

        Args:
            ids: the prompt, at least one token id.
            max_new_tokens: at most this many; None until a stop condition or a full context.
            temperature: 0 takes the most probable token, higher is more varied.
            top_k: choose among this many most probable tokens; 0 for all.
            top_p: choose among the most probable tokens that make up this probability.
            min_p: choose among tokens at least this fraction as probable as the best.
            seed: makes the choice repeatable.
            stop_tokens: tokens that end the answer; None for those of the model.
            stop: texts that end the answer; a special token's name stands for the token.
            context: what it holds of the start of ``ids`` is not computed again; it is left
                holding the prompt and the answer but for the last token.
            progress: called while the prompt is read.

        Raises:
            InputError: an option out of range, or a prompt longer than the model can read. Checked
                at once, before anything is computed.
        """
        texts = (stop,) if isinstance(stop, str) else tuple(stop)
        options = GenerateOptions(
            max_new_tokens=max_new_tokens,
            sampling=SamplingOptions(
                temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
            ),
            seed=seed,
            stop_tokens=self._stop_tokens(stop_tokens, texts),
            stop=texts,
        )
        return Generation(
            self.new_context() if context is None else context,
            check_tokens(ids, self._info.vocab_size),
            options,
            self._tokenizer if self.has_tokenizer else None,
            progress,
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``, begun as the model was trained (see ``Tokenizer.encode``).

        Raises:
            InputError: the bundle has no tokenizer, or ``text`` is no valid text.
        """
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: TokenIds, *, skip_special_tokens: bool = True) -> str:
        """Text of token ids.

        Raises:
            InputError: the bundle has no tokenizer, or an id is outside the vocabulary.
        """
        checked = [check_token(token, self._info.vocab_size) for token in ids]
        return self._tokenizer.decode(checked, skip_special_tokens=skip_special_tokens)

    def chat_ids(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation, as the bundle's chat template writes it.

        Args:
            messages: such as [{"role": "user", "content": "Hello"}], the oldest first.
            add_generation_prompt: whether to end with what begins the model's answer.

        Raises:
            InputError: no tokenizer, no chat template, or one that refuses the messages.
        """
        tokenizer = self._tokenizer
        text = self._template.render(messages, add_generation_prompt=add_generation_prompt)
        return tokenizer.encode(text, add_special_tokens=False)

    def chat(self, messages: Sequence[Message], **options: Any) -> Iterator[str]:
        """Answer a conversation, piece by piece.

        Args:
            messages: see ``chat_ids``.
            options: those of ``generate``.

        Raises:
            InputError: see ``chat_ids`` and ``generate``.
        """
        return self.generate(self.chat_ids(messages), **options).pieces()

    def _stop_tokens(
        self, stop_tokens: Iterable[int] | None, stop: tuple[str, ...]
    ) -> frozenset[int]:
        chosen = self._info.eos_token_ids if stop_tokens is None else stop_tokens
        ids = {check_token(token, self._info.vocab_size) for token in chosen}
        if stop and self.has_tokenizer:
            # Special tokens have no text in an answer, so only their ids can be looked for.
            special = (self._tokenizer.special_token_id(text) for text in stop)
            ids.update(token for token in special if token is not None)
        return frozenset(ids)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        if not self.has_tokenizer:
            raise InputError(
                f"{self.bundle.folder}: text needs tokenizer.json, which this bundle has not; use "
                "token ids, or re-export a checkpoint that has it"
            )
        config = self._tokenizer_config
        return Tokenizer(
            self.bundle.path("tokenizer.json"),
            add_bos=config.get("add_bos_token") is True,
            bos=special_tokens(config).get("bos_token"),
        )

    @functools.cached_property
    def _tokenizer_config(self) -> dict[str, Any]:
        name = "tokenizer_config.json"
        return read_json_object(self.bundle.path(name)) if name in self.manifest.files else {}

    @functools.cached_property
    def _template_source(self) -> tuple[str, str] | None:
        name = "chat_template.jinja"
        path = self.bundle.path(name) if name in self.manifest.files else None
        return find_template(path, self._tokenizer_config)

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        if self._template_source is None:
            raise InputError(
                f"{self.bundle.folder}: this is a base model without a chat template; give it "
                "text to continue (shoal run --prompt, or generate)"
            )
        from shoal.runtime.chat import ChatTemplate  # Jinja takes 40 ms that only chat needs

        source, where = self._template_source
        return ChatTemplate(source, special_tokens(self._tokenizer_config), where)


def _check_graphs(manifest: Manifest, decoder: GraphSession, head: GraphSession) -> None:
    """Kernels trust sizes and ids, so manifest and graphs must agree before anything runs.

    Raises:
        BundleError: they do not.
    """
    info = manifest.model
    layers = range(info.num_hidden_layers)
    ids = Port(type="tensor(int64)", width=None)
    hidden = Port(type="tensor(float)", width=info.hidden_size)
    cache = Port(type="tensor(float)", width=info.kv_lora_rank + info.qk_rope_head_dim)
    expert_ids = Port(type="tensor(int64)", width=info.num_experts_per_tok)
    expert_weights = Port(type="tensor(float)", width=info.num_experts_per_tok)
    decoder.require(
        {"input_ids": ids, "position_ids": ids} | {cache_input(layer): cache for layer in layers},
        {"hidden": hidden}
        | {cache_output(layer): cache for layer in layers}
        | {expert_ids_output(layer): expert_ids for layer in info.moe_layers}
        | {expert_weights_output(layer): expert_weights for layer in info.moe_layers},
    )
    head.require({"hidden": hidden}, {"logits": Port(type="tensor(float)", width=info.vocab_size)})
    embedding = manifest.tensors.get(_EMBEDDING)
    if embedding is not None and embedding.shape[0] != info.vocab_size:
        raise BundleError(
            f"{decoder.path.parent}: {_EMBEDDING} has {embedding.shape[0]} rows, expected "
            f"vocab_size {info.vocab_size}; re-export the bundle"
        )
