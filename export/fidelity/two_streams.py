"""Push a short text through the model while the weights pass by, to measure what int8 costs.

The text goes through twice at once: as the float32 reference, and as the bundle will be served. The
layers it goes through are those of export/fidelity/pulled_layers.py.

Shapes: B windows of the text, T tokens each, D hidden, K chosen experts. Tensors with 2B in front
hold the reference's windows, then the served model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.fidelity.pulled_layers import LayerWeights, pulled_layer
from shoal.export.fidelity.rounding import rounded
from shoal.export.model.layers import RMSNorm
from shoal.export.model.rope import RotaryEmbedding
from shoal.export.model.wiring import (
    EXPERT_IDS,
    HIDDEN,
    Block,
    grow_state,
    layer_blocks,
    run_block,
    walk,
)
from shoal.graphs.parameters import EMBEDDING, HEAD, Parameter
from shoal.graphs.recipes import WeightFormat

_POSITIONS = ("cos", "sin")


class TwoStreams:
    """One text on its way through the layers, twice.

    Args:
        config: of the model.
        formats: of the weights that are not float32.
        ids_BT: the text.
        num_measured: how many of its windows fidelity is measured on; the others calibrate.
        saved: what ``saved`` of another one gave, to continue from there.
    """

    def __init__(
        self,
        config: ModelConfig,
        formats: Mapping[str, WeightFormat],
        ids_BT: Tensor,
        num_measured: int,
        saved: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._config = config
        self._formats = formats
        self._ids_BT = ids_BT
        self._num_measured = num_measured
        b, t = ids_BT.shape
        rest = dict(saved or {HIDDEN: torch.zeros(2 * b, t, config.hidden_size)})
        count = sum(name.startswith(f"{EXPERT_IDS}.") for name in rest)
        self._expert_ids = [rest.pop(f"{EXPERT_IDS}.{i}") for i in range(count)]
        self._flow = rest
        tables = RotaryEmbedding(config)(torch.arange(t)[None])
        self._flow |= zip(_POSITIONS, tables, strict=True)

    def saved(self) -> dict[str, Tensor]:
        """All that the layers passed so far have left behind."""
        found = {f"{EXPERT_IDS}.{i}": ids for i, ids in enumerate(self._expert_ids)}
        found |= {name: self._flow[name] for name in self._flow if name not in _POSITIONS}
        return {name: value.contiguous() for name, value in found.items()}

    def embed(self, start: int, rows: Tensor, served: Tensor) -> None:
        """Look up the tokens from ``start`` on whose embeddings ``rows`` [..,D] are."""
        inside = (self._ids_BT >= start) & (self._ids_BT < start + len(rows))
        ids = self._ids_BT[inside] - start
        for half, table in zip(self._flow[HIDDEN].chunk(2), (rows, served), strict=True):
            half[inside] = table[ids]

    def pass_layer(self, layer: int, weights: LayerWeights) -> None:
        """Go through a layer, whose weights are pulled on the way."""
        blocks = layer_blocks(self._config, layer)
        named = ((Parameter.parse(name), stored) for name, stored in self._formats.items())
        formats = {known.part: stored for known, stored in named if known.layer == layer}
        module = pulled_layer(self._config, blocks, weights, formats, self._num_measured)

        def run(block: Block, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return run_block(block.experts_last(), module, values)

        b, t = self._ids_BT.shape
        state = grow_state(blocks, None, t, batch=2 * b)
        _, chosen = walk(blocks, self._flow, state, run)
        if chosen:
            self._expert_ids.append(chosen[EXPERT_IDS])

    def head_inputs(self, norm: Tensor) -> tuple[Tensor, Tensor]:
        """What the head is applied to, [B*T,D] twice; ``norm`` [D] is the final norm's weight."""
        module = RMSNorm(self._config.hidden_size, self._config.rms_norm_eps)
        module.weight = nn.Parameter(norm, requires_grad=False)
        stored = self._formats.get(str(EMBEDDING if self._config.tie_word_embeddings else HEAD))
        halves = module(self._flow[HIDDEN]).chunk(2)
        reference, served = (half[: self._num_measured].flatten(0, 1) for half in halves)
        return reference, rounded(served, stored)

    def measured_expert_ids(self) -> list[Tensor]:
        """Experts chosen in the measured windows, [2B,T,K] for each layer that has some."""
        return [
            torch.cat([half[: self._num_measured] for half in ids.chunk(2)])
            for ids in self._expert_ids
        ]
