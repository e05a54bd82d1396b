"""``shoal inspect CHECKPOINT``: what a checkpoint is and what a bundle of it will need.

Reads config.json and the headers of the tensors, no weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from shoal.export.bundle_manifest import token_share
from shoal.export.checkpoint.open_checkpoint import open_weights, read_config
from shoal.export.checkpoint.tensor_names import ParameterSources, parameter_sources
from shoal.export.tables import write_grid, write_pairs
from shoal.graphs.footprint import cache_token_bytes, loaded_weight_bytes, memory_by_context
from shoal.graphs.manifest import TensorInfo
from shoal.graphs.parameters import Parameter
from shoal.graphs.recipes import DEFAULT_RECIPE, RECIPES, Recipe

_FLOAT_BYTES = 4


def inspect_checkpoint_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal inspect`` on a checkpoint."""
    report = checkpoint_report(args.path)
    if args.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        _write_report(report)
    return 0


def checkpoint_report(folder: Path) -> dict[str, Any]:
    """Everything ``shoal inspect`` says about a checkpoint, as JSON-ready values.

    Raises:
        ConfigError: the architecture or a config key is not supported.
        CheckpointError: tensors are missing, unexpected or of a wrong shape.
    """
    _, config = read_config(folder)
    checkpoint = open_weights(folder, config)
    parameters = parameter_sources(config, checkpoint)
    int8, fp32 = (planned_tensors(parameters, recipe) for recipe in (RECIPES[DEFAULT_RECIPE], None))
    token_bytes = cache_token_bytes(
        config.kv_lora_rank, config.qk_rope_head_dim, config.num_hidden_layers
    )
    counts = {name: math.prod(source.shape) for name, source in parameters.sources.items()}
    active = sum(count * token_share(config, name) for name, count in counts.items())
    return {
        "kind": "checkpoint",
        "path": str(folder),
        "model_type": config.model_type,
        "num_hidden_layers": config.num_hidden_layers,
        "num_moe_layers": len(config.moe_layers),
        "n_routed_experts": config.n_routed_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "num_mtp_layers": parameters.num_mtp_layers,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "dtypes": sorted({header.dtype for header in checkpoint.tensors.values()}),
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


def _write_report(report: dict[str, Any]) -> None:
    total, active = report["parameters"], report["active_parameters"]
    experts = "none, a dense model"
    if report["num_moe_layers"]:
        experts = f"{report['num_experts_per_tok']} of {report['n_routed_experts']}"
        experts += f" in {report['num_moe_layers']} layers"
    rows = [
        ("model", f"{report['model_type']}, {report['num_hidden_layers']} layers"),
        ("stored as", ", ".join(report["dtypes"])),
        ("parameters", f"{total / 1e6:,.1f} M"),
        ("active per token", f"{active / 1e6:,.1f} M ({active / total:.1%})"),
        ("as int8 bundle", f"{_megabytes(report['int8_bytes'])}"),
        ("as fp32 bundle", f"{_megabytes(report['fp32_bytes'])}"),
        ("read per token", f"{_megabytes(report['token_read_bytes'])} (int8)"),
        ("latent cache per token", f"{report['cache_token_bytes']} bytes"),
        ("longest context", f"{report['max_position_embeddings']} tokens"),
        ("experts", experts),
        ("MTP modules", str(report["num_mtp_layers"])),
    ]
    write_pairs(report["path"], rows)
    write_grid(
        "\nMemory to run the int8 bundle (estimate without scratch memory, portable form)",
        ("context tokens", "latent cache", "with weights"),
        [
            (
                str(row["context_tokens"]),
                _megabytes(row["cache_bytes"]),
                _megabytes(row["memory_bytes"]),
            )
            for row in report["memory"]
        ],
    )
    sys.stdout.writelines(f"note: {note}\n" for note in report["notes"])


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
