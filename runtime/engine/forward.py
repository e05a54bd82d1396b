"""Running a model's graphs for one context: tokens to hidden states, hidden states to logits.

T new tokens   D hidden_size   W vocab_size
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shoal.graphs.contract import expert_ids_output, expert_weights_output
from shoal.graphs.manifest import ModelInfo
from shoal.runtime.engine.layer_state import LayerState
from shoal.runtime.engine.session import Binding, GraphSession
from shoal.runtime.engine.step import (
    SMALLEST_CHUNK,
    Chunk,
    FloatArray,
    Routing,
    StepOutputs,
    chunk_length,
    empty_routing,
    part_of,
)


class Forward:
    """Decoder and head with the buffers of one context.

    Args:
        info: the model.
        decoder: the decoder graph.
        head: the head graph.
    """

    def __init__(self, info: ModelInfo, decoder: GraphSession, head: GraphSession) -> None:
        self._info = info
        self._graphs = decoder, head
        self._decoder = decoder.new_binding()
        self._head = head.new_binding()
        self._score_bytes = decoder.score_bytes(info)
        self._hidden_TD = np.empty((0, info.hidden_size), np.float32)

    def for_another(self) -> Forward:
        """The same graphs for another context."""
        return Forward(self._info, *self._graphs)

    def run(
        self, tokens: list[int], outputs: StepOutputs, state: LayerState, *, routing: bool
    ) -> Iterator[Chunk]:
        """Compute a step chunk by chunk; a chunk is given out once its logits are there too.

        Args:
            tokens: of the step.
            outputs: what is filled.
            state: what earlier tokens left behind, with room for these; its length stays.
            routing: whether chunks are to say what was routed.

        Yields:
            Chunks with the arrays of ``outputs`` where it has room for all tokens; hidden states
            elsewhere are written over by the next chunk.
        """
        start = 0
        while start < len(tokens):
            first = state.length + start
            stop = start + chunk_length(first, len(tokens) - start, self._score_bytes)
            hidden_TD = outputs.hidden
            chunk = Chunk(
                first=first,
                tokens=tokens[start:stop],
                hidden_TD=self._rows(stop - start) if hidden_TD is None else hidden_TD[start:stop],
                routing=self._routing(outputs, start, stop, wanted=routing),
            )
            self._run_decoder(chunk, state, is_last=stop == len(tokens))
            self._fill(outputs, chunk, start)
            yield chunk
            start = stop

    def _run_decoder(self, chunk: Chunk, state: LayerState, *, is_last: bool) -> None:
        count, binding = len(chunk.tokens), self._decoder
        positions = np.arange(chunk.first, chunk.first + count, dtype=np.int64)
        binding.clear()
        binding.bind_input("input_ids", np.array([chunk.tokens], np.int64))
        binding.bind_input("position_ids", positions[None])
        binding.bind_output("hidden", chunk.hidden_TD[None])
        state.bind_to(binding, chunk.first + count)
        if chunk.routing is not None:
            bind_routing(binding, chunk.routing)
        # The scores of a long chunk are far more memory than the steps that follow need.
        binding.run(release_memory=is_last and count > SMALLEST_CHUNK)

    def _fill(self, outputs: StepOutputs, chunk: Chunk, start: int) -> None:
        """Compute the logits that are asked for, and keep the last hidden state."""
        stop = start + len(chunk.tokens)
        is_last = stop == outputs.count
        if len(outputs.logits) == outputs.count:
            self._run_head(chunk.hidden_TD, outputs.logits[start:stop])
        elif len(outputs.logits) == 1 and is_last:
            self._run_head(chunk.hidden_TD[-1:], outputs.logits)
        if is_last:
            outputs.last_hidden[:] = chunk.hidden_TD[-1]

    def _run_head(self, hidden_TD: FloatArray, logits_TW: FloatArray) -> None:
        self._head.bind_input("hidden", hidden_TD[None])
        self._head.bind_output("logits", logits_TW[None])
        self._head.run()

    def _routing(
        self, outputs: StepOutputs, start: int, stop: int, *, wanted: bool
    ) -> Routing | None:
        """Where what is routed for a chunk goes, if anywhere."""
        if outputs.routing is not None:
            return part_of(outputs.routing, start, stop)
        return empty_routing(self._info, stop - start) if wanted else None

    def _rows(self, count: int) -> FloatArray:
        """Room for hidden states that were not asked for, float32 [T,D]."""
        if len(self._hidden_TD) < count:
            self._hidden_TD = np.empty((count, self._info.hidden_size), np.float32)
        return self._hidden_TD[:count]


def bind_routing(binding: Binding, routing: Routing) -> None:
    """Let a decoder or batch graph write what it routes."""
    for index, layer in enumerate(routing.layers):
        binding.bind_output(expert_ids_output(layer), routing.expert_ids[index][None])
        binding.bind_output(expert_weights_output(layer), routing.expert_weights[index][None])
