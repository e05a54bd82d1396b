"""An opened bundle: token ids to logits, text to text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shoal.graphs.cache_types import CacheType, cache_parts, graph_role
from shoal.graphs.manifest import Manifest, checksum
from shoal.runtime.bundle import Bundle
from shoal.runtime.drafting.drafts import DRAFTER, Drafts
from shoal.runtime.engine.arrays import UnexpectedArrays
from shoal.runtime.engine.batch import BatchStep
from shoal.runtime.engine.context import Context, PrefillProgress
from shoal.runtime.engine.context_file import damaged, read_context_file
from shoal.runtime.engine.forward import Forward
from shoal.runtime.engine.latent_cache import LatentCache
from shoal.runtime.engine.layer_state import CacheLayout, LayerState
from shoal.runtime.engine.session import GraphSession, SessionSettings
from shoal.runtime.engine.step import FloatArray, Routing
from shoal.runtime.engine.token_ids import TokenIds, check_token, check_tokens
from shoal.runtime.generate import GenerateOptions, Generation
from shoal.runtime.sampling.bias import LogitBias
from shoal.runtime.sampling.mask import Allowed
from shoal.runtime.sampling.options import SamplingOptions
from shoal.runtime.text.text_files import TextFiles

if TYPE_CHECKING:
    from shoal.runtime.text.chat import Message


class Model:
    """A model that is ready to run. Its contexts may be used in several threads, one in each.

    Args:
        bundle: where it lies.
        settings: threads and kernels.
        cache_type: of the latent cache of its contexts.
        max_context: tokens a context may hold.
        max_memory: see ``open_bundle``.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: SessionSettings,
        cache_type: CacheType,
        max_context: int,
        max_memory: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.cache_type = cache_type
        self.threads = settings.threads
        self.kernels = settings.kernels
        info = self._info = bundle.manifest.model
        self._settings = settings
        self._max_memory = max_memory
        self._text = TextFiles(bundle)
        bundle.require_cache(cache_type)
        self._layout = CacheLayout(
            type=cache_type,
            parts=cache_parts(cache_type, info.kv_lora_rank, info.qk_rope_head_dim),
            max_length=max_context,
        )
        self._decoder = GraphSession(
            bundle.checked_graph(graph_role("decoder", cache_type)), settings
        )
        self._head = GraphSession(bundle.checked_graph("head"), settings)
        # Gives contexts drafters.
        self.drafts = Drafts(bundle, self._layout, settings, self._head, max_memory)

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
        """Whether the bundle has a tokenizer; without one it takes token ids only."""
        return self._text.has_tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether the bundle has a chat template, which ``chat`` needs."""
        return self._text.has_template

    @property
    def max_context(self) -> int:
        """Tokens a context can hold."""
        return self._layout.max_length

    @property
    def can_draft(self) -> bool:
        """Whether the bundle has a multi-token-prediction module."""
        return self.drafts.are_possible

    @functools.cached_property
    def bundle_id(self) -> str:
        """sha256 of the manifest, which holds the sha256 of all other files."""
        return checksum(dataclasses.asdict(self.manifest))

    def new_context(self) -> Context:
        """An empty context."""
        forward = Forward(self._info, self._decoder, self._head)
        return Context(self._info, forward, self._layer_state(), self.bundle_id)

    def load_context(self, path: str | Path) -> Context:
        """Read a context that ``Context.save`` wrote; it continues with the same bits.

        Raises:
            InputError: the file is damaged, of another bundle or type of cache, or no context.
            RuntimeFailure: not enough memory.
        """
        return self.load_context_and_note(path)[0]

    def load_context_and_note(self, path: str | Path) -> tuple[Context, dict[str, Any]]:
        """Read a saved context and the note saved with it; see ``load_context``."""
        cache_type = self.cache_type
        file = read_context_file(Path(path), bundle=self.bundle_id, cache_type=cache_type)
        context = self.new_context()
        if file.has_state_of(DRAFTER):
            self.drafts.start(context)
        try:
            context.restore(file.arrays)
        except UnexpectedArrays as error:
            raise damaged(Path(path)) from error
        return context, file.note

    def logits(self, ids: TokenIds) -> FloatArray:
        """Logits of every position in a fresh context, float32 [T,W].

        Args:
            ids: T token ids, at least one.

        Raises:
            InputError: an id is not in the vocabulary, or there are too many tokens.
            RuntimeFailure: onnxruntime or memory failed.
        """
        return self.new_context().step(ids, logits="all").logits

    def routing(self, ids: TokenIds) -> Routing:
        """Experts of each token in a fresh context; see ``logits``."""
        routing = self.new_context().step(ids, logits="none", routing=True).routing
        assert routing is not None, "routing was asked for"
        return routing

    def head_logits(self, hidden_TD: FloatArray) -> FloatArray:
        """Logits float32 [T,W] of hidden states float32 [T,D] that ``Context.step`` returned.

        With a large vocabulary compute the logits of a long text a few positions at a time.
        """
        return self._head.map_rows("hidden", hidden_TD, "logits", self._info.vocab_size)

    def decode_batch(self, contexts: Sequence[Context], tokens: TokenIds) -> FloatArray:
        """Read one token into each of several contexts, in one step (docs/cache.md).

        Args:
            contexts: of this model, each once.
            tokens: one for each context.

        Returns:
            Logits after each token, float32 [B,W], as ``Context.decode`` would give them.

        Raises:
            InputError: these cannot be read together. After this or any other error all contexts
                are unchanged.
            BundleError: an older shoal exported the bundle, without a graph for several contexts.
        """
        return self._batch_step.run(contexts, tokens)

    def generate(
        self,
        ids: TokenIds,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: LogitBias | None = None,
        allowed: Allowed | None = None,
        logprobs: int | None = None,
        seed: int | None = None,
        stop_tokens: Iterable[int] | None = None,
        stop: Sequence[str] = (),
        draft: int | Literal["auto"] = 0,
        context: Context | None = None,
        progress: PrefillProgress | None = None,
    ) -> Generation:
        """Continue ``ids``. Tokens are computed as the result is iterated over.

        Args:
            ids: the prompt, at least one token id.
            max_new_tokens: at most this many; None for no limit but a full context.
            temperature: 0 always takes the most likely token, higher values vary more.
            top_k: sample among this many most likely tokens; 0 for all.
            top_p: sample among the most likely tokens whose probabilities add up to this.
            min_p: drop tokens less likely than this fraction of the most likely one.
            presence_penalty: subtracted from the logits of tokens that are in the answer, -2 to 2.
            frequency_penalty: subtracted once for each time they are, -2 to 2.
            repetition_penalty: divides positive logits of tokens in the prompt or the answer, and
                multiplies negative ones; 1 for none.
            logit_bias: numbers from -100 to 100, by token id, that are added to logits.
            allowed: tokens that may come, bool [W], or a function that returns them for the tokens
                of the answer so far, which it must not change; stop tokens count among them.
            logprobs: keep in ``Generation.logprobs`` how probable the model took each token for,
                and that many of the most probable tokens beside it; 0 for the token alone, None for
                nothing. Whatever the other options are, these are the model's own.
            seed: makes sampling repeatable.
            stop_tokens: tokens that end the answer; None for those of the model.
            stop: texts that end the answer; a special token's name stands for the token.
            draft: tokens that the multi-token-prediction module guesses ahead, to be checked in one
                step; "auto" for as many as pay, none if the bundle has no such module. The tokens
                are the same as without.
            context: the start of ``ids`` that it holds is not computed again; afterwards it holds
                the prompt and the answer, except for the last token.
            progress: called while the prompt is read, with tokens done and tokens in all.

        Raises:
            InputError: an option is out of range, or the prompt is too long. This is raised here,
                before anything is computed.
        """
        texts = (stop,) if isinstance(stop, str) else tuple(stop)
        options = GenerateOptions(
            max_new_tokens=max_new_tokens,
            sampling=SamplingOptions(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                repetition_penalty=repetition_penalty,
                logit_bias={} if logit_bias is None else logit_bias,
            ),
            logprobs=logprobs,
            allowed=allowed,
            seed=seed,
            stop_tokens=self._stop_tokens(stop_tokens, texts),
            stop=texts,
        )
        tokens = check_tokens(ids, self._info.vocab_size)
        context = self.new_context() if context is None else context
        tokenizer = self._text.tokenizer if self.has_tokenizer else None
        speculation = self.drafts.speculation(context, draft)
        vocab_size = self._info.vocab_size
        return Generation(context, tokens, options, vocab_size, tokenizer, progress, speculation)

    def encode(
        self, text: str, *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> list[int]:
        """Token ids of ``text``, with the BOS token if the model was trained with one.

        Args:
            text: any text.
            add_special_tokens: whether to add the BOS token.
            max_tokens: refuse text that cannot be as few tokens before it is encoded, which takes
                long for long texts; what is a little too long is encoded all the same.

        Raises:
            InputError: the bundle has no tokenizer, ``text`` is too long, or UTF-8 cannot express
                it.
        """
        return self._text.tokenizer.encode(
            text, add_special_tokens=add_special_tokens, max_tokens=max_tokens
        )

    def decode(self, ids: TokenIds, *, skip_special_tokens: bool = True) -> str:
        """Text of token ids.

        Raises:
            InputError: the bundle has no tokenizer, or an id is outside the vocabulary.
        """
        checked = [check_token(token, self._info.vocab_size) for token in ids]
        return self._text.tokenizer.decode(checked, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of one token, which may be half a character.

        Special tokens have their names; what a text begins with is not left out as in ``decode``.

        Raises:
            InputError: the bundle has no tokenizer, or the id is outside the vocabulary.
        """
        return self._text.tokenizer.token_bytes(check_token(token, self._info.vocab_size))

    def chat_ids(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Token ids of a conversation; see ``chat_text``, and ``encode`` for ``max_tokens``."""
        tokenizer = self._text.tokenizer
        text = self.chat_text(messages, add_generation_prompt=add_generation_prompt)
        return tokenizer.encode(text, add_special_tokens=False, max_tokens=max_tokens)

    def chat_text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """A conversation as the bundle's chat template writes it, BOS token included.

        Args:
            messages: for example [{"role": "user", "content": "Hello"}], the oldest first.
            add_generation_prompt: whether to end with the words that begin the model's answer.

        Raises:
            InputError: there is no tokenizer or chat template, or the template refuses the
                messages.
        """
        return self._text.template.render(messages, add_generation_prompt=add_generation_prompt)

    def chat(self, messages: Sequence[Message], **options: Any) -> Iterator[str]:
        """Answer a conversation; yields the text piece by piece.

        Args:
            messages: see ``chat_ids``.
            options: those of ``generate``.

        Raises:
            InputError: see ``chat_ids`` and ``generate``.
        """
        ids = self.chat_ids(messages, max_tokens=self.max_context)
        return self.generate(ids, **options).pieces()

    def _stop_tokens(
        self, stop_tokens: Iterable[int] | None, stop: tuple[str, ...]
    ) -> frozenset[int]:
        chosen = self._info.eos_token_ids if stop_tokens is None else stop_tokens
        ids = {check_token(token, self._info.vocab_size) for token in chosen}
        if stop and self.has_tokenizer:
            # Special tokens have no text in an answer, so only their ids can be looked for.
            special = (self._text.tokenizer.special_token_id(text) for text in stop)
            ids.update(token for token in special if token is not None)
        return frozenset(ids)

    @functools.cached_property
    def _batch_step(self) -> BatchStep:
        head, limit = self._head, self._max_memory
        return BatchStep(self.bundle, self._layer_state(), self._settings, head, limit)

    def _layer_state(self) -> LayerState:
        return LatentCache(self._info.num_hidden_layers, self._layout)
