"""A context: the tokens read so far, their latent cache, and the steps that add to them.

B batch (1)   T new tokens   S cached tokens, the new ones included   D hidden_size   H heads
C kv_lora_rank   R qk_rope_head_dim   K num_experts_per_tok   W vocab_size   M MoE layers
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from shoal.graphs.contract import (
    cache_input,
    cache_output,
    expert_ids_output,
    expert_weights_output,
)
from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.graphs.manifest import ModelInfo
from shoal.runtime.latent_cache import LatentCache
from shoal.runtime.session import GraphSession
from shoal.runtime.token_ids import TokenIds, check_tokens

FloatArray = npt.NDArray[np.float32]
PrefillProgress = Callable[[int, int], None]
"""Called with tokens done and tokens in all."""

SCORE_BYTES = 64 << 20
"""Attention scores of one chunk, H*T*S float32 values, stay below this where they can."""

_SMALLEST_CHUNK = 16
_LARGEST_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The experts each MoE layer sent each token to."""

    layers: tuple[int, ...]  # M indices of decoder layers
    expert_ids: npt.NDArray[np.int64]  # [M,T,K], by falling selection score
    expert_weights: FloatArray  # [M,T,K], what each expert's output was multiplied by


@dataclass(frozen=True, kw_only=True)
class Step:
    """What was asked for of one step."""

    logits: FloatArray  # [n,W] with n = T, 1 or 0
    hidden: FloatArray | None  # [T,D], after the final norm
    routing: Routing | None


def chunk_length(position: int, remaining: int, num_heads: int) -> int:
    """Tokens to run at once from ``position``, so that attention scores stay small."""
    longest = min(remaining, _LARGEST_CHUNK)
    fitting = SCORE_BYTES // (4 * num_heads * (position + longest))
    return min(longest, max(_SMALLEST_CHUNK, fitting))


class Context:
    """Tokens read so far and their latent cache. Not for use by two threads at once.

    A step that fails or is interrupted leaves the context where it was.

    Args:
        info: the model.
        decoder: the decoder graph.
        head: the head graph.
    """

    def __init__(self, info: ModelInfo, decoder: GraphSession, head: GraphSession) -> None:
        self._info = info
        self._tokens: list[int] = []
        self.cache = LatentCache(
            info.num_hidden_layers,
            width=info.kv_lora_rank + info.qk_rope_head_dim,
            max_length=info.max_position_embeddings,
        )
        self.last_hidden = np.zeros(info.hidden_size, np.float32)
        """Hidden state of the last token read, float32 [D], after the final norm."""
        self._decoder = decoder.new_binding()
        self._head = head.new_binding()
        self._chunk_hidden = np.empty((0, info.hidden_size), np.float32)

    @property
    def position(self) -> int:
        """Number of tokens read."""
        return self.cache.length

    @property
    def max_length(self) -> int:
        """Number of tokens the model can read (max_position_embeddings)."""
        return self.cache.max_length

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
        self._check_length(len(tokens))
        outputs = _Outputs(self._info, len(tokens), rows[logits], hidden=hidden, routing=routing)
        self.cache.reserve(self.position + len(tokens))
        self._run_chunks(np.array([tokens], np.int64), outputs, progress)
        self.cache.advance(len(tokens))
        self._tokens += tokens
        self.last_hidden = outputs.last_hidden
        return Step(logits=outputs.logits, hidden=outputs.hidden, routing=outputs.routing)

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first ``length``.

        Raises:
            InputError: the context does not hold as many.
        """
        if isinstance(length, bool) or not isinstance(length, (int, np.integer)):
            raise InputError(f"rewind expects a number of tokens, found {length!r}")
        self.cache.rewind(int(length))
        del self._tokens[int(length) :]

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens in all, so that the cache does not grow on the way.

        Raises:
            InputError: the model cannot read as many.
            RuntimeFailure: not enough memory.
        """
        self.cache.reserve(length)

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
            raise self._too_long(len(tokens))
        # The last token is read again even if it is there: its logits are not kept.
        self.rewind(min(self.common_prefix(tokens), len(tokens) - 1))
        return self.prefill(tokens[self.position :], progress=progress)

    def common_prefix(self, tokens: list[int]) -> int:
        """Number of tokens at the start of ``tokens`` that the context holds already."""
        pairs = zip(self._tokens, tokens, strict=False)
        return next(
            (index for index, (held, new) in enumerate(pairs) if held != new),
            min(len(self._tokens), len(tokens)),
        )

    def _check_length(self, count: int) -> None:
        if self.position + count > self.max_length:
            raise self._too_long(self.position + count)

    def _too_long(self, length: int) -> InputError:
        return InputError(
            f"context: {length} tokens are more than the model's {self.max_length} "
            "(max_position_embeddings); shorten the prompt or start a new context"
        )

    def _run_chunks(
        self, ids_BT: npt.NDArray[np.int64], outputs: _Outputs, progress: PrefillProgress | None
    ) -> None:
        total = ids_BT.shape[1]
        start = 0
        while start < total:
            count = chunk_length(
                self.position + start, total - start, self._info.num_attention_heads
            )
            stop = start + count
            hidden_TD = self._run_decoder(ids_BT[:, start:stop], start, outputs)
            if outputs.logits.shape[0] == total:
                self._run_head(hidden_TD, outputs.logits[start:stop])
            elif stop == total and outputs.logits.shape[0] == 1:
                self._run_head(hidden_TD[-1:], outputs.logits)
            if stop == total:
                outputs.last_hidden[:] = hidden_TD[-1]
            start = stop
            if progress is not None:
                progress(start, total)

    def _run_decoder(
        self, ids_BT: npt.NDArray[np.int64], start: int, outputs: _Outputs
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
        shape_BSC = (1, first + count, self.cache.width)
        for layer in range(self._info.num_hidden_layers):
            address = self.cache.address(layer)
            binding.bind_input_at(cache_input(layer), np.float32, shape_BSC, address)
            binding.bind_output_at(cache_output(layer), np.float32, shape_BSC, address)
        if outputs.routing is not None:
            rows = slice(start, start + count)
            for index, layer in enumerate(outputs.routing.layers):
                ids_TK = outputs.routing.expert_ids[index, rows]
                weights_TK = outputs.routing.expert_weights[index, rows]
                binding.bind_output(expert_ids_output(layer), ids_TK[None])
                binding.bind_output(expert_weights_output(layer), weights_TK[None])
        # The scores of a long chunk are far more memory than the steps that follow need.
        binding.run(release_memory=count > _SMALLEST_CHUNK and start + count == outputs.count)
        return hidden_TD

    def _run_head(self, hidden_TD: FloatArray, logits_TW: FloatArray) -> None:
        self._head.bind_input("hidden", hidden_TD[None])
        self._head.bind_output("logits", logits_TW[None])
        self._head.run()

    def _hidden_rows(self, start: int, count: int, outputs: _Outputs) -> FloatArray:
        """Where the hidden states of a chunk go, float32 [T,D]."""
        if outputs.hidden is not None:
            return outputs.hidden[start : start + count]
        if self._chunk_hidden.shape[0] < count:
            self._chunk_hidden = np.empty((count, self._info.hidden_size), np.float32)
        return self._chunk_hidden[:count]


class _Outputs:
    """Arrays for everything that one step returns, filled chunk by chunk."""

    def __init__(
        self, info: ModelInfo, count: int, num_logits: int, *, hidden: bool, routing: bool
    ) -> None:
        try:
            self.logits = np.empty((num_logits, info.vocab_size), np.float32)
            self.hidden = np.empty((count, info.hidden_size), np.float32) if hidden else None
            self.routing = _empty_routing(info, count) if routing else None
        except MemoryError as error:
            megabytes = num_logits * info.vocab_size * 4 / 1e6
            raise RuntimeFailure(
                f"context: no memory for the results of {count} tokens (logits take "
                f"{megabytes:.0f} MB); ask for fewer tokens at a time"
            ) from error
        self.count = count
        self.last_hidden = np.empty(info.hidden_size, np.float32)


def _empty_routing(info: ModelInfo, count: int) -> Routing:
    shape_MTK = (len(info.moe_layers), count, info.num_experts_per_tok)
    return Routing(
        layers=info.moe_layers,
        expert_ids=np.empty(shape_MTK, np.int64),
        expert_weights=np.empty(shape_MTK, np.float32),
    )
