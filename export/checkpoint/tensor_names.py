"""Match a Hugging Face checkpoint's tensors with the model's parameters; nothing may be left over.

What each parameter is made of is said in layer_sources.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shoal.export.checkpoint.fp8 import FP8_DTYPE, scale_name, scale_problems
from shoal.export.checkpoint.layer_sources import MOE_OUTPUT_NORM, layer_prefix, model_sources
from shoal.export.checkpoint.sources import Shape, Source
from shoal.export.checkpoint.stored_tensors import (
    StoredTensors,
    TensorHeader,
    problems_message,
)
from shoal.export.config.families.family import families
from shoal.export.config.model_config import ModelConfig
from shoal.graphs.errors import CheckpointError
from shoal.graphs.message_parts import shortened

MTP_COPIES = ("embed_tokens.weight", "shared_head.head.weight")
"""Stored again with every MTP module, though they are the main model's."""
LONGCAT_MTP = "model.mtp."
"""What LongCat-Flash's multi-token-prediction module begins with; it has a form of its own."""

UNUSED = re.compile(r"(.*\.)?rotary_emb\.inv_freq")


@dataclass(frozen=True, kw_only=True)
class ParameterSources:
    """Where all parameters of a model come from.

    Attributes:
        sources: By parameter name, in the order of the model's layers.
        num_mtp_layers: MTP modules to build: 0 or 1.
        notes: What the user should know, one sentence each.
    """

    sources: dict[str, Source]
    num_mtp_layers: int
    notes: tuple[str, ...]


def parameter_sources(config: ModelConfig, stored: StoredTensors) -> ParameterSources:
    """Match a checkpoint's tensors with the model's parameters.

    Raises:
        CheckpointError: Tensors are missing, unexpected, of a wrong shape or of a type that cannot
            be read; all of them are named in one message.
    """
    headers = stored.headers
    num_mtp_layers, notes = _mtp_layers(config, headers)
    family = families()[config.model_type]
    sources = {
        source.name: source.renamed(family.tensor_name)
        for source in model_sources(config, headers, num_mtp_layers)
    }
    wanted = {name: s for source in sources.values() for name, s in source.tensors.items()}
    scales = (scale_name(n) for n, h in headers.items() if h.dtype == FP8_DTYPE)
    known = wanted.keys() | set(scales)
    problems = [
        *(f"missing {name} {list(s)}" for name, s in wanted.items() if name not in headers),
        *_mismatches(wanted, stored),
        *(
            f"unexpected {shortened(name)} {list(headers[name].shape)}"
            for name in headers
            if name not in known and not _is_ignored(name, config)
        ),
    ]
    if problems:
        advice = "config.json and the weights must belong together: download both again"
        raise CheckpointError(problems_message(stored.path, problems, advice))
    return ParameterSources(sources=sources, num_mtp_layers=num_mtp_layers, notes=notes)


def wanted_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every tensor that an original checkpoint of the main model has."""
    sources = model_sources(config, {}, 0)
    return {name: shape for source in sources for name, shape in source.tensors.items()}


def _mismatches(wanted: Mapping[str, Shape], stored: StoredTensors) -> Iterator[str]:
    headers = stored.headers
    for name, shape in wanted.items():
        if name not in headers:
            continue
        found = headers[name]
        if found.shape != shape:
            yield f"{name}: expected shape {list(shape)}, found {list(found.shape)}"
        if found.dtype not in stored.readable:
            yield f"{name}: expected {', '.join(stored.readable)}, found {found.dtype}"
        if found.dtype == FP8_DTYPE:
            yield from scale_problems(name, headers, stored.fp8_block)


def _mtp_layers(
    config: ModelConfig, headers: Mapping[str, TensorHeader]
) -> tuple[int, tuple[str, ...]]:
    if any(name.startswith(LONGCAT_MTP) for name in headers):
        return 0, (
            f"the multi-token-prediction module ({LONGCAT_MTP}*) has a form that is not supported: "
            "exported without",
        )
    announced = config.num_nextn_predict_layers
    prefix = layer_prefix(config.num_hidden_layers)
    if announced and not any(name.startswith(prefix) for name in headers):
        return 0, (
            f"config.json announces {announced} multi-token-prediction module(s), the checkpoint "
            "has no weights for any: exported without",
        )
    if announced > 1:
        return 1, (f"only the first of {announced} multi-token-prediction modules is exported",)
    return announced, ()


def _is_ignored(name: str, config: ModelConfig) -> bool:
    if UNUSED.fullmatch(name) or (name == "lm_head.weight" and config.tie_word_embeddings):
        return True
    if config.has_moe_output_norm and name.endswith(MOE_OUTPUT_NORM):
        return True
    ignored = families()[config.model_type].ignored_tensors
    if ignored is not None and ignored.fullmatch(name):
        return True
    for module in range(config.num_nextn_predict_layers):
        prefix = layer_prefix(config.num_hidden_layers + module)
        if name.startswith(prefix):
            return module > 0 or name.removeprefix(prefix) in MTP_COPIES
    return False
