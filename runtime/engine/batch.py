"""Several contexts in one step: a token of each, with weights read once for all of them.

B contexts   D hidden_size   W vocab_size

The graph has slots with caches of their own, so contexts keep their caches where they are and can
be used alone before and after. What rows have in common with those read alone: docs/cache.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from shoal.graphs.cache_types import graph_role
from shoal.graphs.contract import BATCH_SLOTS, SLOT_ROWS_INPUT
from shoal.graphs.errors import BundleError, InputError
from shoal.graphs.footprint import loaded_weight_bytes
from shoal.runtime.bundle import Bundle
from shoal.runtime.engine.context import Context
from shoal.runtime.engine.fit import check_later_graph
from shoal.runtime.engine.forward import bind_routing
from shoal.runtime.engine.layer_state import CacheLayout, LayerState
from shoal.runtime.engine.session import GraphSession, SessionSettings
from shoal.runtime.engine.step import Chunk, FloatArray, Routing, empty_routing, part_of
from shoal.runtime.engine.token_ids import TokenIds, check_tokens


class BatchStep:
    """Reads a token of each of several contexts of a model.

    Args:
        bundle: whose graph with slots is loaded.
        unused: layer state of no tokens, for slots without a context; of the model's layout.
        settings: threads and kernels.
        head: the graph that turns hidden states into logits.
        max_memory: bytes this process may take for itself, None for what there is.

    Raises:
        BundleError: the bundle has no such graph, or another one.
        RuntimeFailure: not enough memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        unused: LayerState,
        settings: SessionSettings,
        head: GraphSession,
        max_memory: int | None,
    ) -> None:
        layout = unused.layout
        role = graph_role("batch", layout.type)
        if role not in bundle.manifest.graphs:
            raise BundleError(
                f"{bundle.folder}: has no graph for several contexts ({role}), it is of an older "
                "shoal; re-export it, or decode one context at a time"
            )
        self._info = bundle.manifest.model
        portable = settings.library is None
        check_later_graph(
            str(bundle.graph_path(role)),
            2 * self._info.num_hidden_layers,  # measured: slots take less than the layer again
            loaded_weight_bytes(bundle.manifest.tensors) if portable else 0,
            max_memory,
            "decode one context at a time",
        )
        self._graph = GraphSession(bundle.checked_graph(role), settings)
        self._head = head
        self._unused = unused

    def run(self, contexts: Sequence[Context], ids: TokenIds) -> FloatArray:
        """Read ``ids[i]`` into ``contexts[i]``; all of them, or after an error none.

        Args:
            contexts: of one model and of any lengths, each once.
            ids: a token id for each.

        Returns:
            Logits after each token, float32 [B,W].

        Raises:
            InputError: not one token for each context, a context twice, of another model, full or
                in use by another thread.
            RuntimeFailure: onnxruntime or memory failed.
        """
        tokens = check_tokens(ids, self._info.vocab_size)
        _check_contexts(contexts, tokens, self._unused.layout)
        logits: list[FloatArray] = []
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context.alone())
            for context in contexts:
                context.reserve(context.position + 1)
            for first in range(0, len(contexts), BATCH_SLOTS):
                rows = slice(first, first + BATCH_SLOTS)
                logits.append(self._peek(contexts[rows], tokens[rows]))
            _adopt_all(contexts)
        return np.concatenate(logits)

    def _peek(self, contexts: Sequence[Context], tokens: Sequence[int]) -> FloatArray:
        """Let contexts, at most one for each slot, look at a token each; none moves on.

        Returns:
            Logits float32 [B,W].
        """
        if len(contexts) == 1:  # the graph with one slot costs less
            return contexts[0].peek(tokens)
        count, info = len(contexts), self._info
        hidden_BD = np.empty((count, info.hidden_size), np.float32)
        is_routing_wanted = any(context.wants_routing for context in contexts)
        routing = empty_routing(info, count) if is_routing_wanted else None
        self._run_slots(contexts, tokens, hidden_BD, routing)
        for at, (context, token) in enumerate(zip(contexts, tokens, strict=True)):
            routed = None if routing is None else part_of(routing, at, at + 1)
            context.offer(Chunk(context.position, [token], hidden_BD[at : at + 1], routed))
        return self._head.map_rows("hidden", hidden_BD, "logits", self._info.vocab_size)

    def _run_slots(
        self,
        contexts: Sequence[Context],
        tokens: Sequence[int],
        hidden_BD: FloatArray,
        routing: Routing | None,
    ) -> None:
        """Compute hidden states, layer states and routing."""
        positions = [context.position for context in contexts]
        slot_rows = np.zeros(BATCH_SLOTS, np.int64)
        slot_rows[: len(contexts)] = 1
        binding = self._graph.new_binding()
        binding.bind_input("input_ids", np.array([tokens], np.int64))
        binding.bind_input("position_ids", np.array([positions], np.int64))
        binding.bind_input(SLOT_ROWS_INPUT, slot_rows)
        binding.bind_output("hidden", hidden_BD[None])
        if routing is not None:
            bind_routing(binding, routing)
        for slot in range(BATCH_SLOTS):
            if slot < len(contexts):
                contexts[slot].layer_state.bind_to(binding, positions[slot] + 1, slot)
            else:
                self._unused.bind_to(binding, 0, slot)
        binding.run()


def _check_contexts(
    contexts: Sequence[Context], tokens: Sequence[int], layout: CacheLayout
) -> None:
    if len(contexts) != len(tokens):
        raise InputError(
            f"decode_batch: expected one token for each context, found {len(tokens)} for "
            f"{len(contexts)}"
        )
    seen: dict[int, int] = {}
    for index, context in enumerate(contexts):
        first = seen.setdefault(id(context), index)
        if first != index:
            raise InputError(
                f"decode_batch: contexts {first} and {index} are the same one, which can read one "
                "token in a step; fork it, or give it one token"
            )
        if context.layer_state.layout is not layout:
            raise InputError(
                f"decode_batch: context {index} was made by another model (or one opened with "
                "another type of cache); use contexts of this one"
            )


def _adopt_all(contexts: Sequence[Context]) -> None:
    positions = [context.position for context in contexts]
    try:
        for context in contexts:
            context.adopt(1)
    except BaseException:  # an observer may fail: a drafter runs its module
        for context, position in zip(contexts, positions, strict=True):
            context.rewind(position)
        raise
