"""``shoal inspect CHECKPOINT``: what a checkpoint is and what a bundle of it will need.

Reads config.json and the headers of the tensors, no weights.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from shoal.export.bundle_manifest import token_share
from shoal.export.checkpoint.open_checkpoint import open_headers
from shoal.export.checkpoint.tensor_names import ParameterSources, parameter_sources
from shoal.graphs.footprint import cache_token_bytes, loaded_weight_bytes, memory_by_context
from shoal.graphs.manifest import TensorInfo
from shoal.graphs.parameters import Parameter
from shoal.graphs.recipes import DEFAULT_RECIPE, RECIPES, Recipe

_FLOAT_BYTES = 4


def checkpoint_report(
    name: str | Path, *, revision: str | None = None, token: str | None = None
) -> dict[str, Any]:
    """Everything ``shoal inspect`` says about a checkpoint, as JSON-ready values.

    Args:
        name: a Hugging Face folder (config.json and *.safetensors), a .gguf file, or ORG/NAME on
            the Hugging Face Hub, of which a few MB are fetched.
        revision: branch, tag or commit of a checkpoint on the hub; None for the main branch.
        token: for the hub; None for HF_TOKEN or a login, if there is one.

    Raises:
        ConfigError: the architecture or a config key is not supported.
        CheckpointError: tensors are missing, unexpected or of a wrong shape.
    """
    with open_headers(name, revision=revision, token=token) as checkpoint:
        config, headers = checkpoint.config, checkpoint.tensors.headers
        parameters = parameter_sources(config, checkpoint.tensors)
    int8, fp32 = (planned_tensors(parameters, recipe) for recipe in (RECIPES[DEFAULT_RECIPE], None))
    token_bytes = cache_token_bytes(
        config.kv_lora_rank, config.qk_rope_head_dim, config.num_hidden_layers
    )
    counts = {name: math.prod(source.shape) for name, source in parameters.sources.items()}
    active = sum(count * token_share(config, name) for name, count in counts.items())
    return {
        "kind": "checkpoint",
        "path": checkpoint.name,
        "model_type": config.model_type,
        "num_hidden_layers": config.num_hidden_layers,
        "num_moe_layers": len(config.moe_layers),
        "n_routed_experts": config.n_routed_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "num_mtp_layers": parameters.num_mtp_layers,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "dtypes": sorted({header.dtype for header in headers.values()}),
        "parameters": sum(counts.values()),
        "active_parameters": round(active),
        "int8_bytes": sum(info.size for info in int8.values()),
        "fp32_bytes": sum(info.size for info in fp32.values()),
        "token_read_bytes": round(
            sum(info.size * token_share(config, name) for name, info in int8.items())
        ),
        "cache_token_bytes": token_bytes,
        "memory": memory_by_context(
            loaded_weight_bytes(int8), token_bytes, config.max_position_embeddings
        ),
        "notes": list(parameters.notes),
    }


def planned_tensors(parameters: ParameterSources, recipe: Recipe | None) -> dict[str, TensorInfo]:
    """The tensors a bundle would hold, without padding between them.

    Args:
        parameters: of the checkpoint.
        recipe: of the bundle, None for a float32 one.
    """
    tensors = {}
    for name, source in parameters.sources.items():
        count = math.prod(source.shape)
        parameter = Parameter.parse(name)
        stored = None if recipe is None else recipe.format_of(parameter)
        if stored is None:
            tensors[name] = _tensor("float32", source.shape, count * _FLOAT_BYTES)
        else:
            scales = count // stored.block_size
            tensors[name] = _tensor("uint8", source.shape, count)
            tensors[str(parameter.scales)] = _tensor("float32", (scales,), scales * _FLOAT_BYTES)
    return tensors


def _tensor(dtype: str, shape: tuple[int, ...], size: int) -> TensorInfo:
    return TensorInfo(dtype=dtype, shape=shape, offset=0, size=size)
