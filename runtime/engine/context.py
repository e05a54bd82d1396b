"""A context: the tokens read so far, what layers keep of them, and the steps that add to them.

T new tokens   D hidden_size   W vocab_size
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shoal.graphs.errors import InputError
from shoal.graphs.manifest import ModelInfo
from shoal.runtime.engine.arrays import Arrays, require_arrays, require_below, take_arrays
from shoal.runtime.engine.context_file import write_context_file
from shoal.runtime.engine.forward import Forward
from shoal.runtime.engine.layer_state import LayerState, too_long
from shoal.runtime.engine.observer import Observer, Observers
from shoal.runtime.engine.one_thread import held, one_thread
from shoal.runtime.engine.step import NO_TOKENS, Chunk, FloatArray, Step, StepOutputs
from shoal.runtime.engine.token_ids import TokenIds, check_tokens

PrefillProgress = Callable[[int, int], None]
"""Called with tokens done and tokens in all."""

_NO_OBSERVERS = Observers()


class Context:
    """Tokens read so far, and what the layers keep of them: the latent cache.

    One thread at a time may use it; others are refused. A step that fails or is interrupted leaves
    the context as it was.

    Args:
        info: the model.
        forward: its graphs.
        layer_state: of no tokens, as the decoder graph has it.
        bundle_id: what a saved context is tied to.
    """

    def __init__(
        self, info: ModelInfo, forward: Forward, layer_state: LayerState, bundle_id: str
    ) -> None:
        self._info = info
        self._forward = forward
        self._bundle_id = bundle_id
        self._tokens: list[int] = []
        self.layer_state = layer_state
        """What the decoder's layers keep: the latent cache."""
        self.last_hidden = np.zeros(info.hidden_size, np.float32)
        """Hidden state of the last token read, float32 [D], after the final norm."""
        self._observers = Observers()
        self._peeked = NO_TOKENS
        self._lock = threading.RLock()

    @property
    def position(self) -> int:
        """Number of tokens read."""
        return self.layer_state.length

    @property
    def nbytes(self) -> int:
        """Bytes of its latent caches, with unused room and what it shares with forks."""
        return self.layer_state.nbytes + self._observers.nbytes

    @property
    def max_length(self) -> int:
        """Tokens it may hold: max_position_embeddings, or ``max_context`` of ``open_bundle``."""
        return self.layer_state.layout.max_length

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens read."""
        return tuple(self._tokens)

    @one_thread
    def attach(self, name: str, observer: Observer) -> None:
        """Let an observer follow the context from now on; forks of the context get forks of it.

        Args:
            name: what its state is saved under; an observer of this name is replaced.
            observer: of this context alone (runtime/engine/observer.py).
        """
        self._peeked = NO_TOKENS
        self._observers.attach(name, observer)

    def observer(self, name: str) -> Observer | None:
        """The observer that was attached under this name."""
        return self._observers.get(name)

    def prefill(self, ids: TokenIds, *, progress: PrefillProgress | None = None) -> FloatArray:
        """Read tokens, in chunks.

        Args:
            ids: at least one token id.
            progress: called after each chunk with tokens done and tokens in all.

        Returns:
            Logits of the last token, float32 [W]; no later call changes this array.

        Raises:
            InputError: an id is not in the vocabulary, or there are more tokens than the context
                can hold. Nothing has been computed.
            RuntimeFailure: onnxruntime failed or there is not enough memory.
        """
        logits: FloatArray = self.step(ids, progress=progress).logits[0]
        return logits

    def decode(self, token: int) -> FloatArray:
        """Read one token and return its logits, float32 [W]; see ``prefill``."""
        return self.prefill([token])

    @one_thread
    def step(
        self,
        ids: TokenIds,
        *,
        logits: Literal["last", "all", "none"] = "last",
        hidden: bool = False,
        routing: bool = False,
        progress: PrefillProgress | None = None,
    ) -> Step:
        """Read tokens and return more than the last logits; see ``prefill``.

        Args:
            ids: at least one token id.
            logits: positions to compute logits for.
            hidden: whether to return hidden states.
            routing: whether to return the experts of each token.
            progress: called after each chunk with tokens done and tokens in all.
        """
        tokens = check_tokens(ids, self._info.vocab_size)
        rows = {"last": 1, "all": len(tokens), "none": 0}
        if logits not in rows:
            raise InputError(f"logits must be last, all or none, found {logits!r}")
        outputs = StepOutputs(self._info, len(tokens), rows[logits], hidden=hidden, routing=routing)
        self._run(tokens, outputs, self._observers, progress)
        self.layer_state.advance(len(tokens))
        self._tokens += tokens
        self.last_hidden = outputs.last_hidden
        return Step(logits=outputs.logits, hidden=outputs.hidden, routing=outputs.routing)

    @one_thread
    def peek(self, ids: TokenIds) -> FloatArray:
        """Compute what a few tokens would give, in one step, without reading them.

        ``adopt`` reads them afterwards at no cost, if nothing else has been done in between.

        Args:
            ids: at least one token id.

        Returns:
            Logits after each of them, float32 [T,W].

        Raises:
            InputError: see ``prefill``.
            RuntimeFailure: see ``prefill``.
        """
        tokens = check_tokens(ids, self._info.vocab_size)
        count, routing = len(tokens), self.wants_routing
        outputs = StepOutputs(self._info, count, count, hidden=True, routing=routing)
        self._run(tokens, outputs)
        assert outputs.hidden is not None, "hidden states were asked for"
        self.offer(Chunk(self.position, tokens, outputs.hidden, outputs.routing))
        return outputs.logits

    def offer(self, chunk: Chunk) -> None:
        """Hold tokens to ``adopt`` that another graph than the decoder's has computed.

        For steps of several contexts: other threads are kept out (``alone``), there is room
        (``reserve``), and the graph has written to the layer state behind the position.

        Args:
            chunk: with routing if the context ``wants_routing``.
        """
        self._peeked = chunk

    @property
    def wants_routing(self) -> bool:
        """Whether an observer wants to know what is routed."""
        return self._observers.wants_routing

    @property
    def peeked(self) -> Chunk:
        """Tokens that were peeked at and can be adopted; doing anything else drops them."""
        return self._peeked

    @one_thread
    def adopt(self, count: int) -> None:
        """Read the first ``count`` tokens that were peeked at and not adopted yet.

        Raises:
            InputError: there are fewer, or something else was done since.
        """
        found = len(self._peeked.tokens)
        if not 0 <= count <= found:
            raise InputError(
                f"context: expected to adopt at most the {found} tokens it last peeked at, found "
                f"{count}; peek again"
            )
        if count == 0:
            return
        adopted, left = self._peeked.split(count)
        try:
            self._observers.observe(adopted)
        except BaseException:
            self._observers.rewind(self.position)
            raise
        self.layer_state.advance(count)
        self._tokens += adopted.tokens
        self.last_hidden = adopted.hidden_TD[-1].copy()
        self._peeked = left

    def alone(self) -> AbstractContextManager[None]:
        """Keeps other threads out while it is entered; refuses if one is inside."""
        return held(self._lock)

    @one_thread
    def fork(self) -> Context:
        """Another context with the same tokens; the cache is copied when either reads more."""
        state, forward = self.layer_state.fork(), self._forward.for_another()
        other = Context(self._info, forward, state, self._bundle_id)
        other._tokens = list(self._tokens)
        other.last_hidden = self.last_hidden.copy()
        other._observers = self._observers.fork()
        return other

    @one_thread
    def save(self, path: str | Path, note: dict[str, Any] | None = None) -> None:
        """Write the context to a file, which appears complete or not at all.

        ``Model.load_context`` reads it.

        Args:
            path: the file; an existing one is replaced.
            note: JSON values to keep with it.

        Raises:
            RuntimeFailure: the file cannot be written. An existing one is still there.
        """
        write_context_file(
            Path(path),
            bundle=self._bundle_id,
            cache_type=self.layer_state.layout.type,
            arrays={
                "tokens": np.array(self._tokens, np.int64),
                "last_hidden": self.last_hidden,
                **self.layer_state.rows(),
                **self._observers.state(),
            },
            note=note or {},
        )

    def restore(self, arrays: Arrays) -> None:
        """Take over what a file holds; see ``Model.load_context``.

        Args:
            arrays: as ``save`` wrote them; their observers are attached.

        Raises:
            InputError: more tokens than the model can read.
            UnexpectedArrays: they are not those of such a context.
        """
        rows = dict(arrays)
        states = self._observers.take_states(rows)
        own = take_arrays(rows, "tokens", "last_hidden")
        self.layer_state.restore(rows)
        count, width = self.position, self._info.hidden_size
        forms = {"tokens": ("int64", (count,)), "last_hidden": ("float32", (width,))}
        require_arrays(own, forms)
        require_below(own["tokens"], self._info.vocab_size)
        if count > self.max_length:
            raise too_long(count, self.max_length)
        self._observers.restore(states)
        self._tokens = own["tokens"].tolist()
        self.last_hidden = own["last_hidden"]

    @one_thread
    def rewind(self, length: int) -> None:
        """Forget all tokens but the first ``length``.

        Raises:
            InputError: the context holds fewer.
        """
        if isinstance(length, bool) or not isinstance(length, (int, np.integer)):
            raise InputError(f"rewind expects a number of tokens, found {length!r}")
        self.layer_state.rewind(int(length))
        del self._tokens[int(length) :]
        self._peeked = NO_TOKENS
        self._observers.rewind(self.position)

    @one_thread
    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens in all, so that no cache has to grow later.

        Raises:
            InputError: the context cannot hold so many.
            RuntimeFailure: not enough memory.
        """
        self._peeked = NO_TOKENS  # growing leaves behind what does not count
        self.layer_state.reserve(length)

    @one_thread
    def switch_to(self, ids: TokenIds, *, progress: PrefillProgress | None = None) -> FloatArray:
        """Make the context hold exactly ``ids``, computing only what follows the common prefix.

        Returns:
            Logits of the last token, float32 [W].

        Raises:
            InputError: see ``prefill``; the context is unchanged. After any other error it holds
                the common prefix.
        """
        tokens = check_tokens(ids, self._info.vocab_size)
        if len(tokens) > self.max_length:
            raise too_long(len(tokens), self.max_length)
        # The last token is read again even if it is there: its logits are not kept.
        self.rewind(min(self.common_prefix(tokens), len(tokens) - 1))
        return self.prefill(tokens[self.position :], progress=progress)

    def common_prefix(self, tokens: list[int]) -> int:
        """How many tokens at the start of ``tokens`` the context already holds."""
        shorter = min(len(self._tokens), len(tokens))
        return next((i for i in range(shorter) if self._tokens[i] != tokens[i]), shorter)

    def _run(
        self,
        tokens: list[int],
        outputs: StepOutputs,
        observers: Observers = _NO_OBSERVERS,
        progress: PrefillProgress | None = None,
    ) -> None:
        """Run tokens from the position on; neither position nor tokens change."""
        self._peeked = NO_TOKENS
        self.layer_state.reserve(self.position + len(tokens))
        routing = self.wants_routing
        try:
            for chunk in self._forward.run(tokens, outputs, self.layer_state, routing=routing):
                observers.observe(chunk)
                if progress is not None:
                    progress(chunk.first + len(chunk.tokens) - self.position, len(tokens))
        except BaseException:
            observers.rewind(self.position)
            raise
