"""Move every weight from the checkpoint into the bundle, once, in the order of weights.bin.

Parameters go in chunks of rows: load as float32, quantize, hand to the sink. Chunks are prepared on
all cores, a few ahead of the one that is written. What is in memory is bounded by those chunks and
the scales of one parameter; the model's size does not matter. With a fidelity text, the two streams
of export/fidelity/two_streams.py ride on the same pass.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.export.checkpoint.safetensors_files import Checkpoint
from shoal.export.checkpoint.sources import Source
from shoal.export.config.model_config import ModelConfig
from shoal.export.fidelity.calibration import round_with_inputs
from shoal.export.fidelity.head_comparison import Fidelity, HeadComparison
from shoal.export.fidelity.text import FidelityText
from shoal.export.fidelity.two_streams import Each, TwoStreams, Weights
from shoal.export.writing.journal import ResumePoint
from shoal.export.writing.sinks import WeightSink
from shoal.graphs.passes.quantize_weights import SCALES_SUFFIX
from shoal.graphs.passes.weights import WeightPlan
from shoal.graphs.quantize import (
    dequantize_blocks,
    quantize_blocks,
    quantize_nibbles,
    unpack_nibbles,
)
from shoal.graphs.recipes import WeightFormat

Note = Callable[[dict[str, Tensor]], None]
"""Called when a layer is done, with the state of the fidelity text."""

CHUNK_VALUES = 1 << 22
"""Values that are loaded at a time, when a single row, head or expert does not have more."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_LARGE_ARRAY_BYTES = 8 << 20
_VALUES_IN_FLIGHT = 1 << 26
_LINEAR_MAPS = ("_proj.weight", "_proj_with_mqa.weight")


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Some rows of a parameter.

    Attributes:
        start: The first row.
        weight: float32, as the checkpoint has it.
        served: float32, as the bundle's user sees it; ``weight`` itself when nobody asked.
        encoded: As it is stored.
        scales: Of the blocks, or None for a float parameter.
    """

    start: int
    weight: Tensor
    served: Tensor
    encoded: NDArray[np.generic]
    scales: NDArray[np.float32] | None


class Transfer:
    """One pass over all weights of a model."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        sources: dict[str, Source],
        plan: WeightPlan,
        formats: dict[str, WeightFormat],
        sink: WeightSink,
        text: FidelityText | None,
    ) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._sources = sources
        self._plan = plan
        self._formats = formats
        self._sink = sink
        self._text = text
        self._workers = os.cpu_count() or 1
        self._calibrated: TwoStreams | None = None  # set while experts pass that a text improves

    def run(
        self, resume: ResumePoint | None = None, note: Note = lambda streams: None
    ) -> Fidelity | None:
        """Do it. Returns the fidelity if there was a text to measure it on.

        Args:
            resume: where to continue; None begins at the beginning.
            note: called after every layer with the state of the fidelity text; empty without one.
        """
        _map_large_arrays()
        with torch.inference_mode(), ThreadPoolExecutor(self._workers) as self._pool:
            if self._text is not None:
                return self._run_measured(self._text, resume, note)
            for _, names in self._sections(resume):
                for name in names:
                    self._move(name)
                note({})
        return None

    def _sections(self, resume: ResumePoint | None) -> Iterator[tuple[str, list[str]]]:
        """Names of the parameters that are still to be moved, layer by layer."""
        done_bytes = 0 if resume is None else resume.position
        for section, group in groupby(self._parameters(), key=_section):
            names = list(group)
            if self._plan.tensors[names[0]].offset >= done_bytes:
                yield section, names

    def _run_measured(
        self, text: FidelityText, resume: ResumePoint | None, note: Note
    ) -> Fidelity | None:
        streams = TwoStreams(self._config, self._formats, text.all_ids, len(text.ids_BT))
        if resume is not None:
            streams.restore(resume.streams)
        comparison: HeadComparison | None = None
        for section, names in self._sections(resume):
            if section == "embed_tokens":
                self._move(*names, each=streams.embed)
            elif section.startswith("layers."):
                self._measure_layer(streams, int(section.removeprefix("layers.")), names)
            elif section == "norm":
                (name,) = names
                norm = self._sources[name].load(self._checkpoint)
                comparison = HeadComparison(text.ids_BT, *streams.head_inputs(norm))
                self._move(name)
                if self._config.tie_word_embeddings:
                    for chunk in self._chunks("embed_tokens.weight", with_served=True):
                        comparison.add(chunk.start, chunk.weight, chunk.served)
            elif section == "lm_head":
                assert comparison is not None, "the head comes after the final norm"
                self._move(*names, each=comparison.add)
            else:
                for name in names:
                    self._move(name)
            if comparison is None:  # from the final norm on, the last layer is begun from
                note(streams.state())
        assert comparison is not None, "a model has a final norm"
        fidelity = comparison.finish(text.name, streams.measured_expert_ids())
        if text.calibration is None:
            return fidelity
        tokens = text.calibration.ids_BT.numel()
        return replace(fidelity, calibration={"text": text.calibration.name, "tokens": tokens})

    def _measure_layer(self, streams: TwoStreams, layer: int, names: list[str]) -> None:
        prefix = f"layers.{layer}."
        reference: Weights = {}
        served: Weights = {}
        for name in names:
            if not _is_experts(name) and not name.endswith(_LINEAR_MAPS):
                chunks = list(self._chunks(name, with_served=True))
                short = name.removeprefix(prefix)
                reference[short] = torch.cat([chunk.weight for chunk in chunks])
                served[short] = torch.cat([chunk.served for chunk in chunks])
        pending = deque(name for name in names if not _is_experts(name))

        def pull(short: str, each: Each) -> None:
            """Move the layer's parameters up to this one, which is measured."""
            while pending[0] != prefix + short:
                self._move(pending.popleft())
            self._move(pending.popleft(), each=each)

        streams.pass_layer(layer, reference, served, pull)
        for name in pending:
            self._move(name)
        experts = [name for name in names if _is_experts(name)]
        if len(streams.ids_BT) > streams.num_measured:
            self._calibrated = streams
        for name in experts:
            is_first = name.endswith(".gate_up")
            self._move(name, each=streams.expert_gate_up if is_first else streams.expert_down)
        self._calibrated = None
        if experts:
            streams.end_layer()

    def _parameters(self) -> Iterator[str]:
        """Parameter names in writing order: the plan without the scales."""
        return (name for name in self._plan.tensors if name in self._sources)

    def _move(self, name: str, *, each: Each | None = None) -> None:
        """Write one parameter, showing its rows to ``each`` on the way."""
        scales: list[NDArray[np.float32]] = []

        def encoded() -> Iterator[NDArray[np.generic]]:
            for chunk in self._chunks(name, with_served=each is not None):
                if each is not None:
                    each(chunk.start, chunk.weight, chunk.served)
                if chunk.scales is not None:
                    scales.append(chunk.scales)
                yield chunk.encoded

        self._sink.write(name, encoded())
        if scales:
            self._sink.write(name + SCALES_SUFFIX, scales)

    def _chunks(self, name: str, *, with_served: bool) -> Iterator[_Chunk]:
        """The rows of a parameter in order, prepared by all cores."""
        rows, *row_shape = self._sources[name].shape
        step = max(1, CHUNK_VALUES // math.prod(row_shape))
        ahead = max(1, min(self._workers, _VALUES_IN_FLIGHT // (step * math.prod(row_shape))))
        jobs: deque[Future[_Chunk]] = deque()
        try:
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                jobs.append(self._pool.submit(self._prepare, name, start, stop, with_served))
                if len(jobs) > ahead:
                    yield jobs.popleft().result()
            while jobs:
                yield jobs.popleft().result()
        finally:
            for job in jobs:
                job.cancel()

    def _prepare(self, name: str, start: int, stop: int, with_served: bool) -> _Chunk:
        with torch.inference_mode():  # holds for one thread
            weight = self._sources[name].load_rows(self._checkpoint, start, stop)
            stored = self._formats.get(name)
            if stored is None:
                encoded: NDArray[np.generic] = weight.numpy()
                return _Chunk(
                    start=start, weight=weight, served=weight, encoded=encoded, scales=None
                )
            if stored.bits == 8:
                codes, scales = quantize_blocks(weight.numpy(), stored.block_size)
            elif self._calibrated is None:
                codes, scales = quantize_nibbles(weight.numpy(), stored.block_size)
            else:
                codes, scales = _calibrated(self._calibrated, name, start, weight, stored)
            served = weight
            if with_served:
                wide = codes if stored.bits == 8 else unpack_nibbles(codes)
                served = torch.from_numpy(dequantize_blocks(wide, scales))
            return _Chunk(start=start, weight=weight, served=served, encoded=codes, scales=scales)


def _calibrated(
    streams: TwoStreams, name: str, start: int, weight: Tensor, stored: WeightFormat
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Packed codes and scales of the experts from ``start`` on, rounded with their inputs."""
    is_first = name.endswith(".gate_up")
    pairs = [
        round_with_inputs(
            matrix.numpy(), streams.calibration_inputs(expert, is_first=is_first), stored.block_size
        )
        for expert, matrix in enumerate(weight, start)
    ]
    return np.stack([codes for codes, _ in pairs]), np.stack([scales for _, scales in pairs])


def _map_large_arrays() -> None:
    """Have glibc give every large array pages of its own, which go back when it is freed.

    Left to itself it keeps freed arrays of up to 32 MB for reuse, in holes that do not fit: up to
    a gigabyte of them, more or less from run to run.
    """
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE_ARRAY_BYTES)
        # Smaller ones stay for reuse; else pages are given back and fetched with every chunk.
        mallopt(_M_TRIM_THRESHOLD, _LARGE_ARRAY_BYTES)


def _section(name: str) -> str:
    """``layers.3`` for ``layers.3.mlp.gate.weight``, else the part before the first dot."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("layers", "mtp") else parts[0]


def _is_experts(name: str) -> bool:
    return ".mlp.experts." in name
