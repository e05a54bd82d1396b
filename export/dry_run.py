"""``shoal export --dry-run``: what an export would write and what its bundle will need.

Everything is checked that can be without reading weights: config, tensor names and shapes, the
target, the room on its disk. Nothing is written.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoal.export.bundle_manifest import count_parameters, token_read_bytes
from shoal.export.checkpoint.open_checkpoint import open_headers
from shoal.export.fidelity.text import TextChoice
from shoal.export.plan import ExportModel, open_model, small_files, used_formats
from shoal.graphs.contract import WEIGHTS_FILE
from shoal.graphs.fidelity import DEFAULT_CALIBRATE_TOKENS, DEFAULT_FIDELITY_TOKENS
from shoal.graphs.footprint import cache_token_bytes, loaded_weight_bytes, memory_by_context
from shoal.graphs.recipes import DEFAULT_RECIPE, Recipe, choose_recipe


def dry_run_record(
    checkpoint: str | Path,
    bundle: Path,
    *,
    weights: str = DEFAULT_RECIPE,
    block_size: int | None = None,
    fidelity: bool = True,
    fidelity_text: Path | None = None,
    fidelity_tokens: int = DEFAULT_FIDELITY_TOKENS,
    calibrate: Path | None = None,
    calibrate_tokens: int = DEFAULT_CALIBRATE_TOKENS,
    revision: str | None = None,
    token: str | None = None,
) -> dict[str, Any]:
    """What ``export_bundle`` with the same arguments would do, as JSON-ready values.

    Args:
        checkpoint: see ``export_bundle``; of one on the hub a few MB are fetched.
        bundle: the folder that would be made.
        weights: see ``export_bundle``, as for all that follow.
        block_size: as there.
        fidelity: as there.
        fidelity_text: as there.
        fidelity_tokens: as there.
        calibrate: as there.
        calibrate_tokens: as there.
        revision: as there.
        token: as there.

    Raises:
        ConfigError: the architecture or a config key is not supported.
        CheckpointError: the checkpoint is incomplete or damaged.
    """
    choice = TextChoice(
        wanted=fidelity,
        path=fidelity_text,
        num_tokens=fidelity_tokens,
        calibrate=calibrate,
        calibrate_tokens=calibrate_tokens,
    )
    recipe = choose_recipe(weights, block_size)
    with open_headers(checkpoint, revision=revision, token=token) as opened:
        model = open_model(opened, recipe, choice)
    return {
        "dry_run": True,
        "bundle": str(bundle),
        "weights": weights,
        "free_bytes": shutil.disk_usage(_existing(bundle.absolute())).free,
        **_foretold(model, recipe),
    }


def _foretold(model: ExportModel, recipe: Recipe | None) -> dict[str, Any]:
    """What the plan of a bundle says of it."""
    config, plan = model.checkpoint.config, model.graphs.plan
    contents = small_files(model)
    files = {name: len(content) for name, content in sorted(contents.items())}
    files[WEIGHTS_FILE] = plan.total_bytes
    formats = used_formats(recipe, model.graphs)
    parameters, active = count_parameters(config, plan)
    token_bytes = cache_token_bytes(
        config.kv_lora_rank, config.qk_rope_head_dim, config.num_hidden_layers
    )
    return {
        "formats": {kind: asdict(form) for kind, form in formats.items()},
        "parameters": parameters,
        "active_parameters": active,
        "bundle_bytes": sum(files.values()),
        "files": files,
        "tensors": len(plan.tensors),
        "token_read_bytes": token_read_bytes(config, plan),
        "cache_token_bytes": token_bytes,
        "memory": memory_by_context(
            loaded_weight_bytes(plan.tensors), token_bytes, config.max_position_embeddings
        ),
        "notes": list(model.notes),
    }


def _existing(path: Path) -> Path:
    """The nearest folder above ``path`` that exists."""
    return next(folder for folder in path.parents if folder.is_dir())
