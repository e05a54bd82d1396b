"""What can be evaluated: bundles and, where the export extra is installed, checkpoints.

T tokens   D hidden_size   W vocab_size   M MoE layers   K num_experts_per_tok
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shoal.graphs.errors import InputError
from shoal.graphs.manifest import checksum
from shoal.graphs.model_forms import is_checkpoint
from shoal.runtime.engine.step import FloatArray
from shoal.runtime.extras import load_for_checkpoint
from shoal.runtime.model import Model
from shoal.runtime.opening import open_bundle
from shoal.runtime.text.tokenizer import Tokenizer, tokenizer_files, tokenizer_of

IntArray = npt.NDArray[np.int64]

_LOGITS_AT_ONCE = 4 << 20  # 32 MB in float64, of which some five are held at a time


class Subject(Protocol):
    """A model that can be evaluated. A checkpoint's is in shoal.export, hence a protocol."""

    name: str  # as it was given: a path, or ORG/NAME on the hub
    weights: str  # how they are held: "int8", "fp32", ..
    weight_bytes: int
    num_parameters: int
    vocab_size: int
    max_length: int  # tokens
    moe_layers: tuple[int, ...]
    num_experts_per_tok: int
    config: dict[str, Any]  # the checkpoint's config.json
    tokenizer: dict[str, bytes]  # content of tokenizer files by name

    def read(self, ids: Sequence[int]) -> tuple[FloatArray, IntArray]:
        """Hidden states [T,D] and expert ids [M,T,K] of tokens in an empty context."""

    def logits(self, hidden_TD: FloatArray) -> FloatArray:
        """Logits [T,W] of hidden states."""

    def continue_greedily(self, ids: Sequence[int], count: int) -> list[int]:
        """The top-1 token after ``ids``, the top-1 token after that, and so on."""


class BundleSubject:
    """An opened bundle; see ``Subject`` for what it has."""

    def __init__(self, model: Model) -> None:
        manifest = model.manifest
        self.name = str(model.bundle.folder)
        self.weights = manifest.weights
        self.weight_bytes = sum(tensor.size for tensor in manifest.tensors.values())
        self.num_parameters = manifest.model.parameters
        self.vocab_size = manifest.model.vocab_size
        self.max_length = model.max_context
        self.moe_layers = manifest.model.moe_layers
        self.num_experts_per_tok = manifest.model.num_experts_per_tok
        self.config = manifest.config
        self.tokenizer = tokenizer_files(model.bundle.folder)
        self._model = model
        self._context = model.new_context()

    def read(self, ids: Sequence[int]) -> tuple[FloatArray, IntArray]:
        """See ``Subject``."""
        self._context.rewind(0)
        step = self._context.step(ids, logits="none", hidden=True, routing=True)
        assert step.hidden is not None, "hidden states were asked for"
        assert step.routing is not None, "routing was asked for"
        return step.hidden, step.routing.expert_ids

    def logits(self, hidden_TD: FloatArray) -> FloatArray:
        """See ``Subject``."""
        return self._model.head_logits(hidden_TD)

    def continue_greedily(self, ids: Sequence[int], count: int) -> list[int]:
        """See ``Subject``."""
        return list(islice(self._model.generate(ids, max_new_tokens=count, stop_tokens=()), count))


def open_subject(
    model: Model | str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    **open_options: Any,
) -> Subject:
    """Open what is to be evaluated.

    Args:
        model: an open model, a bundle folder or a checkpoint, which is a Hugging Face folder
            (config.json and *.safetensors), a .gguf file, or ORG/NAME on the Hugging Face Hub.
        revision: branch, tag or commit of a checkpoint on the hub; None for the main branch.
        token: for the hub; None for HF_TOKEN or a login, if there is one.
        open_options: for bundle folders, those of ``open_bundle``; of them a checkpoint takes
            ``threads``.

    Raises:
        BundleError: a bundle is damaged.
        ShoalError: a checkpoint is damaged or not supported.
        RuntimeFailure: a checkpoint, and the export extra is not installed.
    """
    if isinstance(model, Model):
        return BundleSubject(model)
    if not is_checkpoint(model):
        return BundleSubject(open_bundle(model, **open_options))
    module = load_for_checkpoint(
        "shoal.export.model.subject", model, what="evaluating a checkpoint"
    )
    subject: Subject = module.CheckpointSubject(
        model, threads=open_options.get("threads"), revision=revision, token=token
    )
    return subject


def config_sha256(subject: Subject) -> str:
    """What tells models apart that are made from different checkpoints' configs."""
    return checksum(subject.config)


def shared_tokenizer(subjects: Sequence[Subject]) -> tuple[Tokenizer, str]:
    """The tokenizer of all models and its sha256.

    Raises:
        InputError: they have different tokenizers, vocabularies or none.
    """
    first = subjects[0]
    tokenizer, digest = _tokenizer(first)
    for other in subjects[1:]:
        if (_tokenizer(other)[1], other.vocab_size) != (digest, first.vocab_size):
            raise InputError(
                f"{other.name}: expected the tokenizer of {first.name}, found another one; "
                "probabilities of different tokens cannot be compared, so evaluate them apart"
            )
    return tokenizer, digest


def _tokenizer(subject: Subject) -> tuple[Tokenizer, str]:
    content = subject.tokenizer.get("tokenizer.json")
    if content is None:
        raise InputError(
            f"{subject.name}: evaluating needs tokenizer.json, which is not there; re-export a "
            "checkpoint that has it"
        )
    tokenizer = tokenizer_of(subject.tokenizer, Path(subject.name), subject.vocab_size)
    begin = ",".join(map(str, tokenizer.begin_ids)).encode()
    return tokenizer, hashlib.sha256(content + begin).hexdigest()


def row_slices(count: int, vocab_size: int) -> Iterator[slice]:
    """Positions to compute logits for at a time, so that a vocabulary's take little memory."""
    rows = max(1, _LOGITS_AT_ONCE // vocab_size)
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))
