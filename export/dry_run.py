"""``shoal export --dry-run``: what an export would write and what its bundle will need.

Everything is checked that can be without reading weights: config, tensor names and shapes, the
target, the room on its disk. Nothing is written.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoal.export.bundle_manifest import count_parameters, token_read_bytes
from shoal.export.fidelity.text import TextChoice
from shoal.export.plan import open_model, small_files, used_formats
from shoal.export.tables import write_grid, write_pairs
from shoal.graphs.contract import WEIGHTS_FILE
from shoal.graphs.footprint import cache_token_bytes, loaded_weight_bytes, memory_by_context
from shoal.graphs.recipes import WeightFormat, choose_recipe, format_rows


def dry_run_record(checkpoint: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What ``shoal export`` of a checkpoint would do, as JSON-ready values.

    Args:
        checkpoint: folder with config.json, headers of tensors and tokenizer files.
        args: the other options.

    Raises:
        ConfigError: the architecture or a config key is not supported.
        CheckpointError: the checkpoint is incomplete or damaged.
    """
    target = Path(args.bundle).absolute()
    choice = TextChoice(
        wanted=not args.no_fidelity,
        path=args.fidelity_text,
        num_tokens=args.fidelity_tokens,
        calibrate=args.calibrate,
        calibrate_tokens=args.calibrate_tokens,
    )
    recipe = choose_recipe(args.weights, args.block_size)
    model = open_model(checkpoint, recipe, choice)
    config, plan = model.config, model.graphs.plan
    contents = small_files(model)
    files = {name: len(content) for name, content in sorted(contents.items())}
    files[WEIGHTS_FILE] = plan.total_bytes
    formats = used_formats(recipe, model.graphs)
    parameters, active = count_parameters(config, plan)
    token_bytes = cache_token_bytes(
        config.kv_lora_rank, config.qk_rope_head_dim, config.num_hidden_layers
    )
    return {
        "dry_run": True,
        "bundle": str(args.bundle),
        "weights": args.weights,
        "formats": {kind: asdict(form) for kind, form in formats.items()},
        "parameters": parameters,
        "active_parameters": active,
        "bundle_bytes": sum(files.values()),
        "free_bytes": shutil.disk_usage(_existing(target)).free,
        "files": files,
        "tensors": len(plan.tensors),
        "token_read_bytes": token_read_bytes(config, plan),
        "cache_token_bytes": token_bytes,
        "memory": memory_by_context(
            loaded_weight_bytes(plan.tensors), token_bytes, config.max_position_embeddings
        ),
        "notes": list(model.notes),
    }


def write_dry_run(record: dict[str, Any]) -> None:
    """Print the record for people."""
    write_pairs(
        f"{record['bundle']} (dry run: nothing is written)",
        [
            ("weights", f"{record['weights']}, {record['tensors']} tensors"),
            ("parameters", f"{record['parameters'] / 1e6:,.1f} M"),
            ("active per token", f"{record['active_parameters'] / 1e6:,.1f} M"),
            ("size", _megabytes(record["bundle_bytes"])),
            ("free on the disk", _megabytes(record["free_bytes"])),
            ("read per token", _megabytes(record["token_read_bytes"])),
            ("latent cache per token", f"{record['cache_token_bytes']} bytes"),
        ],
    )
    formats = {kind: WeightFormat(**form) for kind, form in record["formats"].items()}
    if formats:
        write_pairs("\nWeights", format_rows(formats))
    write_grid(
        "\nFiles", ("name", "size"), [(n, _megabytes(b)) for n, b in record["files"].items()]
    )
    write_grid(
        "\nMemory to run the bundle (estimate without scratch memory, portable form)",
        ("context tokens", "latent cache", "with weights"),
        [
            (
                str(row["context_tokens"]),
                _megabytes(row["cache_bytes"]),
                _megabytes(row["memory_bytes"]),
            )
            for row in record["memory"]
        ],
    )
    notes = list(record["notes"])
    if record["bundle_bytes"] > record["free_bytes"]:
        notes.append("the bundle does not fit on the disk: free some space or choose another place")
    if notes:
        write_pairs("\nNotes", [("note", note) for note in notes])


def _existing(path: Path) -> Path:
    """The nearest folder above ``path`` that exists."""
    return next(folder for folder in path.parents if folder.is_dir())


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
