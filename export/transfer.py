"""Move every weight from the checkpoint into the bundle, once, in the order of weights.bin.

Parameters go in chunks of rows: load as float32, quantize, hand to the sink. Chunks are prepared on
all cores, a few ahead of the one that is written. What is in memory is bounded by those chunks and
the scales of one parameter; the model's size does not matter. Others may look at the rows that pass
by, as export/fidelity/measured_pass.py does.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.export.checkpoint.sources import Reader, Source
from shoal.export.writing.journal import ResumePoint
from shoal.export.writing.sinks import WeightSink
from shoal.graphs.parameters import Parameter
from shoal.graphs.passes.weights import WeightPlan
from shoal.graphs.quantize import (
    Codes,
    Floats,
    dequantize_blocks,
    quantize_blocks,
    quantize_nibbles,
    unpack_nibbles,
)
from shoal.graphs.recipes import WeightFormat

Note = Callable[[dict[str, Tensor]], None]
"""Called when a layer is done, with what the fidelity text has come to."""

Each = Callable[[int, Tensor, Tensor], None]
"""Takes (first row, float32 rows, rows as served) of a parameter."""

Encode = Callable[[int, Tensor, WeightFormat], tuple[Codes, Floats]]
"""From (first row, float32 rows, format) to codes and scales; called by several threads at once."""

CHUNK_VALUES = 1 << 22
"""Values that are loaded at a time, when a single row, head or expert does not have more."""

_VALUES_IN_FLIGHT = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some rows of a parameter.

    Attributes:
        start: The first row.
        weight: float32, as the checkpoint has it.
        served: float32, as the bundle's user sees it; ``weight`` itself if not asked for.
        encoded: As it is stored.
        scales: Of the blocks, or None for a float parameter.
    """

    start: int
    weight: Tensor
    served: Tensor
    encoded: NDArray[np.generic]
    scales: NDArray[np.float32] | None


@contextmanager
def open_transfer(
    *,
    checkpoint: Reader,
    sources: Mapping[str, Source],
    plan: WeightPlan,
    formats: Mapping[str, WeightFormat],
    sink: WeightSink,
) -> Iterator[Transfer]:
    """A ``Transfer`` with a thread for each core.

    Args:
        checkpoint: where the weights come from.
        sources: what makes each parameter.
        plan: what is in weights.bin, in order.
        formats: of the weights that are not float32.
        sink: where they go to.
    """
    workers = os.cpu_count() or 1
    with torch.inference_mode(), ThreadPoolExecutor(workers) as pool:
        yield Transfer(
            checkpoint=checkpoint,
            sources=sources,
            plan=plan,
            formats=formats,
            sink=sink,
            pool=pool,
            workers=workers,
        )


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One pass over all weights of a model; see ``open_transfer``.

    Attributes:
        pool: threads that prepare chunks.
        workers: how many they are.
    """

    checkpoint: Reader
    sources: Mapping[str, Source]
    plan: WeightPlan
    formats: Mapping[str, WeightFormat]
    sink: WeightSink
    pool: Executor
    workers: int

    def move_all(self, resume: ResumePoint | None = None, note: Note = lambda passed: None) -> None:
        """Move everything.

        Args:
            resume: where to continue; None begins at the beginning.
            note: called after every layer, with nothing.
        """
        for names in self.sections(resume):
            for name in names:
                self.move(name)
            note({})

    def sections(self, resume: ResumePoint | None = None) -> Iterator[list[str]]:
        """Names of the parameters that are still to be moved, a piece of the model at a time."""
        done_bytes = 0 if resume is None else resume.position
        parameters = (name for name in self.plan.tensors if name in self.sources)  # no scales
        for _, group in groupby(parameters, key=lambda name: Parameter.parse(name).section):
            names = list(group)
            if self.plan.tensors[names[0]].offset >= done_bytes:
                yield names

    def move(self, name: str, *, each: Each | None = None, encode: Encode | None = None) -> None:
        """Write one parameter.

        Args:
            name: of the parameter.
            each: shown its rows on the way.
            encode: how to quantize it, if not value by value.
        """
        scales: list[NDArray[np.float32]] = []

        def encoded() -> Iterator[NDArray[np.generic]]:
            for chunk in self.chunks(name, with_served=each is not None, encode=encode):
                if each is not None:
                    each(chunk.start, chunk.weight, chunk.served)
                if chunk.scales is not None:
                    scales.append(chunk.scales)
                yield chunk.encoded

        self.sink.write(name, encoded())
        if scales:
            self.sink.write(str(Parameter.parse(name).scales), scales)

    def chunks(
        self, name: str, *, with_served: bool, encode: Encode | None = None
    ) -> Iterator[Chunk]:
        """The rows of a parameter in order, prepared by all cores."""
        rows, *row_shape = self.sources[name].shape
        step = max(1, CHUNK_VALUES // math.prod(row_shape))
        ahead = max(1, min(self.workers, _VALUES_IN_FLIGHT // (step * math.prod(row_shape))))
        jobs: deque[Future[Chunk]] = deque()
        try:
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                jobs.append(
                    self.pool.submit(
                        self._prepare, name, start, stop, with_served, encode or encode_values
                    )
                )
                if len(jobs) > ahead:
                    yield jobs.popleft().result()
            while jobs:
                yield jobs.popleft().result()
        finally:
            for job in jobs:
                job.cancel()

    def _prepare(
        self, name: str, start: int, stop: int, with_served: bool, encode: Encode
    ) -> Chunk:
        with torch.inference_mode():  # holds for one thread
            weight = self.sources[name].load_rows(self.checkpoint, start, stop)
            stored = self.formats.get(name)
            if stored is None:
                encoded: NDArray[np.generic] = weight.numpy()
                return Chunk(
                    start=start, weight=weight, served=weight, encoded=encoded, scales=None
                )
            codes, scales = encode(start, weight, stored)
            served = weight
            if with_served:
                wide = codes if stored.bits == 8 else unpack_nibbles(codes)
                served = torch.from_numpy(dequantize_blocks(wide, scales))
            return Chunk(start=start, weight=weight, served=served, encoded=codes, scales=scales)


def encode_values(start: int, rows: Tensor, stored: WeightFormat) -> tuple[Codes, Floats]:
    """Quantize every value for itself, wherever the rows ``start``."""
    quantize = quantize_blocks if stored.bits == 8 else quantize_nibbles
    return quantize(rows.numpy(), stored.block_size)
