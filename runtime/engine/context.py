"""A context: the tokens read so far, their latent cache, and the steps that add to them.

B batch (1)   T new tokens   S cached tokens, the new ones included   D hidden_size   H heads
C kv_lora_rank   R qk_rope_head_dim   K num_experts_per_tok   W vocab_size   M MoE layers
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from shoal.graphs.contract import expert_ids_output, expert_weights_output
from shoal.graphs.errors import InputError
from shoal.graphs.manifest import ModelInfo
from shoal.runtime.drafting.drafter import Drafter
from shoal.runtime.engine.context_file import write_context_file
from shoal.runtime.engine.latent_cache import CacheLayout, LatentCache, too_long
from shoal.runtime.engine.one_thread import held, one_thread
from shoal.runtime.engine.session import GraphSession
from shoal.runtime.engine.step import SMALLEST_CHUNK, FloatArray, Step, StepOutputs, chunk_length
from shoal.runtime.engine.token_ids import TokenIds, check_tokens

PrefillProgress = Callable[[int, int], None]
"""Called with tokens done and tokens in all."""


class Context:
    """Tokens read so far and their latent cache. One thread at a time; a second one is refused.

    A step that fails or is interrupted leaves the context where it was.

    Args:
        info: the model.
        decoder: the decoder graph.
        head: the head graph.
        bundle_id: what a saved context is tied to.
        layout: of the latent cache, as the decoder graph has it.
    """

    def __init__(
        self,
        info: ModelInfo,
        decoder: GraphSession,
        head: GraphSession,
        bundle_id: str,
        layout: CacheLayout,
    ) -> None:
        self._info = info
        self._graphs = decoder, head
        self._bundle_id = bundle_id
        self._layout = layout
        self._tokens: list[int] = []
        self.cache = LatentCache(info.num_hidden_layers, layout)
        self.last_hidden = np.zeros(info.hidden_size, np.float32)
        """Hidden state of the last token read, float32 [D], after the final norm."""
        self.drafter: Drafter | None = None
        """Guesses what follows, once somebody has asked for drafts."""
        self._decoder = decoder.new_binding()
        self._head = head.new_binding()
        self._chunk_hidden = np.empty((0, info.hidden_size), np.float32)
        self._ahead: tuple[list[int], FloatArray] = ([], self._chunk_hidden)
        self._lock = threading.RLock()

    @property
    def position(self) -> int:
        """Number of tokens read."""
        return self.cache.length

    @property
    def nbytes(self) -> int:
        """Bytes of the latent cache, unused room and what is shared with forks included."""
        return self.cache.nbytes + (0 if self.drafter is None else self.drafter.cache.nbytes)

    @property
    def max_length(self) -> int:
        """Number of tokens it may hold (max_position_embeddings or max_context)."""
        return self._layout.max_length

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens read."""
        return tuple(self._tokens)

    def prefill(self, ids: TokenIds, *, progress: PrefillProgress | None = None) -> FloatArray:
        """Read tokens, in chunks.

        Args:
            ids: at least one token id.
            progress: called after each chunk.

        Returns:
            Logits of the last one, float32 [W], the caller's to keep.

        Raises:
            InputError: ids are no ids of this vocabulary, or more than the model can read. Nothing
                has been computed then.
            RuntimeFailure: onnxruntime or memory failed.
        """
        logits: FloatArray = self.step(ids, progress=progress).logits[0]
        return logits

    def decode(self, token: int) -> FloatArray:
        """Read one token; see ``prefill``. Returns logits float32 [W]."""
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
            routing: whether to return what was routed.
            progress: called after each chunk.
        """
        tokens = check_tokens(ids, self._info.vocab_size)
        rows = {"last": 1, "all": len(tokens), "none": 0}
        if logits not in rows:
            raise InputError(f"logits must be last, all or none, found {logits!r}")
        outputs = StepOutputs(self._info, len(tokens), rows[logits], hidden=hidden, routing=routing)
        self._run_chunks(tokens, outputs, progress, self.drafter)
        self.cache.advance(len(tokens))
        self._tokens += tokens
        self.last_hidden = outputs.last_hidden
        return Step(logits=outputs.logits, hidden=outputs.hidden, routing=outputs.routing)

    @one_thread
    def peek(self, ids: TokenIds) -> FloatArray:
        """Look at what a few tokens would give, in one step, without reading them.

        ``adopt`` reads them afterwards at no cost, as long as nothing else was done meanwhile.

        Args:
            ids: at least one token id.

        Returns:
            Logits after each of them, float32 [T,W].

        Raises:
            InputError: see ``prefill``.
            RuntimeFailure: see ``prefill``.
        """
        tokens = check_tokens(ids, self._info.vocab_size)
        outputs = StepOutputs(self._info, len(tokens), len(tokens), hidden=True, routing=False)
        self._run_chunks(tokens, outputs)
        assert outputs.hidden is not None, "hidden states were asked for"
        self.offer(tokens, outputs.hidden)
        return outputs.logits

    def get_ready(self, count: int) -> None:
        """Make room for tokens whose cache rows a graph is going to write; see ``prefill``."""
        if self.position + count > self.max_length:
            raise too_long(self.position + count, self.max_length)
        self._drop_peeked()
        self.cache.reserve(self.position + count)

    def offer(self, tokens: list[int], hidden_TD: FloatArray) -> None:
        """Hold tokens to ``adopt``: their cache rows are written, their hidden states used."""
        self._ahead = tokens, hidden_TD

    @one_thread
    def adopt(self, count: int) -> None:
        """Read the first ``count`` tokens that were peeked at and not adopted yet.

        Raises:
            InputError: there are not as many, or something else was done since.
        """
        tokens, hidden_TD = self._ahead
        if not 0 <= count <= len(tokens):
            raise InputError(
                f"context: expected to adopt at most the {len(tokens)} tokens it last peeked at, "
                f"found {count}; peek again"
            )
        if count == 0:
            return
        if self.drafter is not None:
            self.drafter.observe(self.position, tokens[:count], hidden_TD[:count])
        self.cache.advance(count)
        self._tokens += tokens[:count]
        self.last_hidden = hidden_TD[count - 1].copy()
        self._ahead = tokens[count:], hidden_TD[count:]

    def alone(self) -> AbstractContextManager[None]:
        """Keeps other threads out while it is entered; refuses if one is inside."""
        return held(self._lock)

    @one_thread
    def fork(self) -> Context:
        """Another context with the same tokens; rows are copied when one of the two goes on."""
        other = Context(self._info, *self._graphs, self._bundle_id, self._layout)
        other.cache = self.cache.fork()
        other._tokens = list(self._tokens)
        other.last_hidden = self.last_hidden.copy()
        other.drafter = None if self.drafter is None else self.drafter.fork()
        return other

    @one_thread
    def save(self, path: str | Path, note: dict[str, Any] | None = None) -> None:
        """Write the context to a file that ``Model.load_context`` reads, at once or not at all.

        Args:
            path: the file; replaced if it is there.
            note: JSON values to keep with it.

        Raises:
            RuntimeFailure: the disk is full or refuses. What was there before is still there.
        """
        arrays: dict[str, npt.NDArray[Any]] = {
            "tokens": np.array(self._tokens, np.int64),
            "last_hidden": self.last_hidden,
        }
        arrays |= self.cache.rows()
        if self.drafter is not None:
            arrays |= {f"mtp.{name}": array for name, array in self.drafter.state().items()}
        write_context_file(
            Path(path),
            bundle=self._bundle_id,
            cache_type=self._layout.type,
            arrays=arrays,
            note=note or {},
        )

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take over what a file holds; see ``Model.load_context``."""
        self._tokens = arrays["tokens"].tolist()
        self.last_hidden = arrays["last_hidden"]
        self.cache.restore(arrays)
        if self.drafter is not None:
            mtp = {name[4:]: array for name, array in arrays.items() if name.startswith("mtp.")}
            self.drafter.restore(mtp)

    @property
    def peeked(self) -> tuple[int, ...]:
        """Tokens that were peeked at and can be adopted."""
        return tuple(self._ahead[0])

    def state_rows(self, *, ahead: bool) -> FloatArray:
        """What tokens left behind, to be compared: hidden states and all cache rows, copied.

        Args:
            ahead: of the tokens that were peeked at, else of the last one read.

        Returns:
            float32 [T, D + values of a token in the cache]; float32 holds all types exactly.
        """
        if ahead:
            hidden_TD, rows = self._ahead[1], self.cache.rows_ahead(len(self._ahead[0]))
        else:
            hidden_TD, rows = self.last_hidden[None], self.cache.rows()
        parts = [hidden_TD, *(part[-len(hidden_TD) :] for part in rows.values())]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    @one_thread
    def rewind(self, length: int) -> None:
        """Forget all tokens but the first ``length``.

        Raises:
            InputError: the context does not hold as many.
        """
        if isinstance(length, bool) or not isinstance(length, (int, np.integer)):
            raise InputError(f"rewind expects a number of tokens, found {length!r}")
        self.cache.rewind(int(length))
        del self._tokens[int(length) :]
        self._drop_peeked()
        if self.drafter is not None:
            self.drafter.rewind(int(length))

    def drop_first(self, count: int) -> NoReturn:
        """Refused: the first tokens of a context cannot be forgotten.

        Raises:
            InputError: always, with the reason and what to do instead.
        """
        raise InputError(
            f"context: the first {count} tokens cannot be dropped, because the keys of all later "
            "ones are rotated by positions counted from them, and their latents were computed with "
            f"them in sight; read the {max(0, self.position - count)} that remain into a new "
            "context"
        )

    @one_thread
    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens in all, so that the cache does not grow on the way.

        Raises:
            InputError: the model cannot read as many.
            RuntimeFailure: not enough memory.
        """
        self._drop_peeked()
        self.cache.reserve(length)

    @one_thread
    def switch_to(self, ids: TokenIds, *, progress: PrefillProgress | None = None) -> FloatArray:
        """Make the context hold exactly ``ids``, computing only what follows the common prefix.

        Returns:
            Logits of the last one, float32 [W].

        Raises:
            InputError: see ``prefill``; the context is as it was then. After any other failure it
                holds the common prefix.
        """
        tokens = check_tokens(ids, self._info.vocab_size)
        if len(tokens) > self.max_length:
            raise too_long(len(tokens), self.max_length)
        # The last token is read again even if it is there: its logits are not kept.
        self.rewind(min(self.common_prefix(tokens), len(tokens) - 1))
        return self.prefill(tokens[self.position :], progress=progress)

    def common_prefix(self, tokens: list[int]) -> int:
        """Number of tokens at the start of ``tokens`` that the context holds already."""
        shorter = min(len(self._tokens), len(tokens))
        return next((i for i in range(shorter) if self._tokens[i] != tokens[i]), shorter)

    def _drop_peeked(self) -> None:
        self._ahead = [], self._ahead[1][:0]

    def _run_chunks(
        self,
        tokens: list[int],
        outputs: StepOutputs,
        progress: PrefillProgress | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """Run tokens from the position on; neither position nor tokens change."""
        self.get_ready(len(tokens))
        ids_BT, total, start = np.array([tokens], np.int64), len(tokens), 0
        try:
            while start < total:
                first = self.position + start
                count = chunk_length(first, total - start, self._graphs[0].score_bytes(self._info))
                stop = start + count
                hidden_TD = self._run_decoder(ids_BT[:, start:stop], start, outputs)
                if drafter is not None:
                    drafter.observe(first, tokens[start:stop], hidden_TD)
                if outputs.logits.shape[0] == total:
                    self._run_head(hidden_TD, outputs.logits[start:stop])
                elif stop == total and outputs.logits.shape[0] == 1:
                    self._run_head(hidden_TD[-1:], outputs.logits)
                if stop == total:
                    outputs.last_hidden[:] = hidden_TD[-1]
                start = stop
                if progress is not None:
                    progress(start, total)
        except BaseException:
            if drafter is not None:
                drafter.rewind(self.position)
            raise

    def _run_decoder(
        self, ids_BT: npt.NDArray[np.int64], start: int, outputs: StepOutputs
    ) -> FloatArray:
        """Run one chunk that begins ``start`` tokens after the position. Returns hidden [T,D]."""
        count = ids_BT.shape[1]
        first = self.position + start
        hidden_TD = self._hidden_rows(start, count, outputs)
        binding = self._decoder
        binding.clear()
        binding.bind_input("input_ids", ids_BT)
        binding.bind_input("position_ids", np.arange(first, first + count, dtype=np.int64)[None])
        binding.bind_output("hidden", hidden_TD[None])
        self.cache.bind_to(binding, first + count)
        if outputs.routing is not None:
            rows = slice(start, start + count)
            for index, layer in enumerate(outputs.routing.layers):
                ids_TK = outputs.routing.expert_ids[index, rows]
                weights_TK = outputs.routing.expert_weights[index, rows]
                binding.bind_output(expert_ids_output(layer), ids_TK[None])
                binding.bind_output(expert_weights_output(layer), weights_TK[None])
        # The scores of a long chunk are far more memory than the steps that follow need.
        binding.run(release_memory=count > SMALLEST_CHUNK and start + count == outputs.count)
        return hidden_TD

    def _run_head(self, hidden_TD: FloatArray, logits_TW: FloatArray) -> None:
        self._head.bind_input("hidden", hidden_TD[None])
        self._head.bind_output("logits", logits_TW[None])
        self._head.run()

    def _hidden_rows(self, start: int, count: int, outputs: StepOutputs) -> FloatArray:
        """Where the hidden states of a chunk go, float32 [T,D]."""
        if outputs.hidden is not None:
            return outputs.hidden[start : start + count]
        if self._chunk_hidden.shape[0] < count:
            self._chunk_hidden = np.empty((count, self._info.hidden_size), np.float32)
        return self._chunk_hidden[:count]
