"""A checkpoint as ``shoal eval`` reads models: in float32, whole in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.export.checkpoint.open_checkpoint import open_checkpoint
from shoal.export.model.load import model_of
from shoal.export.model.wiring import LayerState

_FLOAT_BYTES = 4


class CheckpointSubject:
    """The reference modules on a checkpoint's weights; has what the evaluation asks of a model.

    Args:
        name: a Hugging Face folder (config.json and *.safetensors), a .gguf file, or ORG/NAME on
            the Hugging Face Hub.
        threads: threads that compute; None leaves it to torch.
        revision: branch, tag or commit of a checkpoint on the hub; None for the main branch.
        token: for the hub; None for HF_TOKEN or a login, if there is one.

    Raises:
        ConfigError: the architecture is not supported.
        CheckpointError: the checkpoint is incomplete or damaged.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        threads: int | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> None:
        self._threads = threads
        checkpoint = open_checkpoint(name, revision=revision, token=token)
        config = checkpoint.config
        self._model = model_of(checkpoint)
        self.name = checkpoint.name
        self.config = checkpoint.raw_config
        self.tokenizer = checkpoint.tokenizer
        self.weights = "float32"
        self.num_parameters = sum(weight.numel() for weight in self._model.parameters())
        self.weight_bytes = self.num_parameters * _FLOAT_BYTES
        self.vocab_size = config.vocab_size
        self.max_length = config.max_position_embeddings
        self.moe_layers = tuple(config.moe_layers)
        self.num_experts_per_tok = config.num_experts_per_tok if config.moe_layers else 0

    def read(self, ids: Sequence[int]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Hidden states [T,D] and expert ids [M,T,K] of tokens in an empty context."""
        with self._computing():
            hidden, _, experts = self._step(list(ids), 0, None)
        shape = (0, len(ids), self.num_experts_per_tok)
        chosen = np.stack(experts) if experts else np.empty(shape, np.int64)
        return hidden[0].numpy(), chosen

    def logits(self, hidden_TD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits [T,W] of hidden states."""
        with self._computing():
            found: npt.NDArray[np.float32] = self._model.head(torch.from_numpy(hidden_TD)).numpy()
            return found

    def continue_greedily(self, ids: Sequence[int], count: int) -> list[int]:
        """The most likely token after ``ids``, the most likely after that, and so on."""
        new: list[int] = []
        with self._computing():
            hidden, states, _ = self._step(list(ids), 0, None)
            while True:
                new.append(int(self._model.head(hidden[0, -1]).argmax()))
                if len(new) == count:
                    return new
                hidden, states, _ = self._step(new[-1:], len(ids) + len(new) - 1, states)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Without gradients, on the threads asked for; torch then has its own number again."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads or before)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)

    def _step(
        self, ids: list[int], position: int, states: list[LayerState] | None
    ) -> tuple[Tensor, list[LayerState], list[npt.NDArray[np.int64]]]:
        """Hidden states [1,T,D], the new states, and each MoE layer's expert ids [T,K]."""
        positions = torch.arange(position, position + len(ids))[None]
        grown = self._model.grow_states(states, len(ids))
        hidden, states, routing = self._model(torch.tensor([ids]), positions, grown)
        return hidden, states, [chosen.expert_ids[0].numpy() for chosen in routing.values()]
