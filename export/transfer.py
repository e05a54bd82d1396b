"""Move every weight from the checkpoint into the bundle, once, in the order of weights.bin.

Tensor by tensor: load as float32, quantize, hand to the sink; routed experts one at a time. What
is in memory is bounded by a layer without its routed experts, the model's size does not matter.
With a fidelity text, the two streams of export/streams.py ride on the same pass.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.export.checkpoint import Checkpoint
from shoal.export.config import ModelConfig
from shoal.export.fidelity import Fidelity, Side, compare
from shoal.export.names import Source
from shoal.export.streams import Stream, Weights
from shoal.export.weights import WeightSink
from shoal.graphs.passes.quantize_weights import SCALES_SUFFIX
from shoal.graphs.passes.weights import WeightPlan
from shoal.graphs.quantize import dequantize_blocks, quantize_blocks


@dataclass(frozen=True, kw_only=True)
class FidelityText:
    """What to measure fidelity on: a name and int64 windows [B,T]."""

    name: str
    ids_BT: Tensor


class Transfer:
    """One pass over all weights of a model."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        sources: dict[str, Source],
        plan: WeightPlan,
        block_sizes: dict[str, int],
        sink: WeightSink,
        text: FidelityText | None,
    ) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._sources = sources
        self._plan = plan
        self._block_sizes = block_sizes
        self._sink = sink
        self._text = text
        self._reference = Stream(config, {})
        self._served = Stream(config, block_sizes)
        self._norm = torch.empty(0)

    def run(self) -> Fidelity | None:
        """Do it. Returns the fidelity if there was a text to measure it on."""
        fidelity = None
        with torch.inference_mode():
            for section, names in groupby(self._parameters(), key=_section):
                if section == "embed_tokens":
                    self._embedding(*names)
                elif section.startswith("layers."):
                    self._layer(int(section.removeprefix("layers.")), list(names))
                elif section == "norm":
                    self._norm, _ = self._move(*names)
                    if self._config.tie_word_embeddings:
                        fidelity = self._head("embed_tokens.weight", write=False)
                elif section == "lm_head":
                    fidelity = self._head(*names, write=True)
                else:
                    self._mtp(list(names))
                _return_freed_memory()
        return fidelity

    def _parameters(self) -> Iterator[str]:
        """Parameter names in writing order: the plan without the scales."""
        return (name for name in self._plan.tensors if name in self._sources)

    def _embedding(self, name: str) -> None:
        weight, _ = self._move(name, keep_served=False)
        if self._text is None:
            return
        rows, ids = torch.unique(self._text.ids_BT, return_inverse=True)
        self._reference.embed(ids, weight[rows])
        self._served.embed(ids, self._as_served(name, weight[rows]))

    def _layer(self, layer: int, names: list[str]) -> None:
        prefix = f"layers.{layer}."
        reference: Weights = {}
        served: Weights = {}
        experts = [name for name in names if _is_experts(name)]
        for name in names:
            if name not in experts:
                short = name.removeprefix(prefix)
                reference[short], served[short] = self._move(name)
        if self._text is not None:
            self._reference.begin_layer(layer, reference)
            self._served.begin_layer(layer, served)
        for name in experts:
            self._move_experts(name)
        if self._text is not None and experts:
            self._reference.end_layer()
            self._served.end_layer()

    def _head(self, name: str, *, write: bool) -> Fidelity | None:
        if self._text is None:
            if write:
                self._move(name)
            return None
        if write:
            weight, served = self._move(name)
        else:
            weight = self._sources[name].load(self._checkpoint)
            served = self._as_served(name, weight)
        sides = [
            Side(stream=stream, head_input=stream.head_input(self._norm), head=head)
            for stream, head in ((self._reference, weight), (self._served, served))
        ]
        return compare(self._text.name, self._text.ids_BT, *sides)

    def _mtp(self, names: list[str]) -> None:
        for name in names:
            if not _is_experts(name):
                self._move(name, keep_served=False)
        for name in names:
            if _is_experts(name):
                self._move_experts(name, measured=False)

    def _move(self, name: str, *, keep_served: bool = True) -> tuple[Tensor, Tensor]:
        """Write one parameter; returns it as float32 and as the bundle's user sees it."""
        weight = self._sources[name].load(self._checkpoint)
        block_size = self._block_sizes.get(name)
        if block_size is None:
            self._sink.write(name, [weight.numpy()])
            return weight, weight
        quantized, scales = quantize_blocks(weight.numpy(), block_size)
        self._sink.write(name, [quantized])
        self._sink.write(name + SCALES_SUFFIX, [scales])
        if self._text is None or not keep_served:
            return weight, torch.empty(0)
        return weight, torch.from_numpy(dequantize_blocks(quantized, scales))

    def _as_served(self, name: str, weight: Tensor) -> Tensor:
        block_size = self._block_sizes.get(name)
        if block_size is None:
            return weight
        return torch.from_numpy(dequantize_blocks(*quantize_blocks(weight.numpy(), block_size)))

    def _move_experts(self, name: str, *, measured: bool = True) -> None:
        """Write a stacked expert parameter, one expert at a time."""
        block_size = self._block_sizes.get(name)
        scales: list[NDArray[np.float32]] = []

        def experts() -> Iterator[NDArray[np.generic]]:
            for expert in range(self._config.n_routed_experts):
                weight = self._sources[name].load_expert(self._checkpoint, expert)
                served = weight
                encoded: NDArray[np.generic] = weight.numpy()
                if block_size is not None:
                    encoded, expert_scales = quantize_blocks(weight.numpy(), block_size)
                    scales.append(expert_scales)
                    if self._text is not None and measured:
                        served = torch.from_numpy(dequantize_blocks(encoded, expert_scales))
                if self._text is not None and measured:
                    self._measure_expert(name, expert, weight, served)
                yield encoded

        self._sink.write(name, experts())
        if block_size is not None:
            self._sink.write(name + SCALES_SUFFIX, scales)

    def _measure_expert(self, name: str, expert: int, weight: Tensor, served: Tensor) -> None:
        for stream, stream_weight in ((self._reference, weight), (self._served, served)):
            if name.endswith(".gate_up"):
                stream.expert_gate_up(expert, stream_weight)
            else:
                stream.expert_down(expert, stream_weight)


def _return_freed_memory() -> None:
    """Give freed pages back to the system: glibc keeps them, a gigabyte after some layers."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _section(name: str) -> str:
    """``layers.3`` for ``layers.3.mlp.gate.weight``, else the part before the first dot."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("layers", "mtp") else parts[0]


def _is_experts(name: str) -> bool:
    return ".mlp.experts." in name
