"""Move all weights into the bundle and measure on the way what their storage costs.

The two streams of export/fidelity/two_streams.py go through every layer while its weights pass; the
heads are compared a range of the vocabulary at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from shoal.export.config.model_config import ModelConfig
from shoal.export.fidelity.head_comparison import Fidelity, HeadComparison
from shoal.export.fidelity.text import FidelityText
from shoal.export.fidelity.two_streams import TwoStreams
from shoal.export.transfer import Each, Encode, Note, Transfer
from shoal.export.writing.journal import ResumePoint
from shoal.graphs.parameters import EMBEDDING, FINAL_NORM, HEAD, Parameter, Place


def move_and_measure(
    transfer: Transfer,
    config: ModelConfig,
    text: FidelityText,
    resume: ResumePoint | None = None,
    note: Note = lambda passed: None,
) -> Fidelity:
    """Do what ``Transfer.move_all`` does and measure fidelity.

    Args:
        transfer: moves the weights.
        config: of the model.
        text: what to measure on.
        resume: where to continue; None begins at the beginning.
        note: called after every layer with what the text has come to.
    """
    saved = None if resume is None else resume.streams
    streams = TwoStreams(config, transfer.formats, text.all_ids, len(text.ids_BT), saved)
    comparison: HeadComparison | None = None
    for names in transfer.sections(resume):
        first = Parameter.parse(names[0])
        if first == EMBEDDING:
            transfer.move(*names, each=streams.embed)
        elif first.layer is not None:
            layer = PassingLayer(transfer, first.layer, names)
            streams.pass_layer(first.layer, layer)
            layer.move_rest()
        elif first == FINAL_NORM:
            comparison = _compare_heads(transfer, config, text, streams)
        elif first == HEAD:
            assert comparison is not None, "the head comes after the final norm"
            transfer.move(*names, each=comparison.add)
        else:
            for name in names:
                transfer.move(name)
        if comparison is None:  # a stop after the final norm goes back to the last layer
            note(streams.saved())
    assert comparison is not None, "a model has a final norm"
    fidelity = comparison.finish(text.name, streams.measured_expert_ids())
    if text.calibration is None:
        return fidelity
    tokens = text.calibration.ids_BT.numel()
    return replace(fidelity, calibration={"text": text.calibration.name, "tokens": tokens})


def _compare_heads(
    transfer: Transfer, config: ModelConfig, text: FidelityText, streams: TwoStreams
) -> HeadComparison:
    """Move the final norm; compare heads that are the embedding, and get ready for others."""
    norm = transfer.sources[str(FINAL_NORM)].load(transfer.checkpoint)
    comparison = HeadComparison(text.ids_BT, *streams.head_inputs(norm))
    transfer.move(str(FINAL_NORM))
    if config.tie_word_embeddings:
        for chunk in transfer.chunks(str(EMBEDDING), with_served=True):
            comparison.add(chunk.start, chunk.weight, chunk.served)
    return comparison


class PassingLayer:
    """The parameters of a layer on their way into the bundle; a ``LayerWeights``.

    Args:
        transfer: moves them.
        layer: its index.
        names: of its parameters, in the order of weights.bin.
    """

    def __init__(self, transfer: Transfer, layer: int, names: Sequence[str]) -> None:
        self._transfer = transfer
        self._prefix = Place.LAYER.prefix(layer)
        self._pending = deque(names)

    def whole(self, name: str) -> tuple[Tensor, Tensor]:
        """A parameter as float32 and as served; it is moved when its turn comes."""
        chunks = list(self._transfer.chunks(self._prefix + name, with_served=True))
        reference = torch.cat([chunk.weight for chunk in chunks])
        return reference, torch.cat([chunk.served for chunk in chunks])

    def pull(self, name: str, each: Each, encode: Encode | None = None) -> None:
        """Move the parameters up to this one, which is shown to ``each``."""
        wanted = self._prefix + name
        assert wanted in self._pending, f"{wanted} was pulled after what lies behind it"
        while self._pending[0] != wanted:
            self._transfer.move(self._pending.popleft())
        self._transfer.move(self._pending.popleft(), each=each, encode=encode)

    def move_rest(self) -> None:
        """Move what was not pulled."""
        while self._pending:
            self._transfer.move(self._pending.popleft())
