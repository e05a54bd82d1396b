"""``shoal inspect``: what a bundle is and what it needs, from its manifest alone.

For a checkpoint: see inspect_checkpoint.py.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoal.graphs.cache_types import CACHE_TYPES, graph_role
from shoal.graphs.footprint import bundle_cache_token_bytes, context_lengths
from shoal.graphs.manifest import Manifest
from shoal.graphs.model_forms import check_revision, is_checkpoint
from shoal.graphs.recipes import WeightFormat
from shoal.runtime.bundle import Bundle
from shoal.runtime.commands.inspect_checkpoint import inspect_checkpoint
from shoal.runtime.console.record_rows import experts_text, fidelity_rows, format_rows
from shoal.runtime.console.report import write_grid, write_json, write_lines, write_pairs
from shoal.runtime.engine.need import Form, bundle_need
from shoal.runtime.units import format_bytes, format_count, format_rate


def inspect_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal inspect``.

    Raises:
        InputError: the name is neither a bundle's nor a checkpoint's.
        RuntimeFailure: a checkpoint, and the export extra is not installed.
    """
    if is_checkpoint(args.path):
        return inspect_checkpoint(args)
    check_revision(args.path, args.revision)
    bundle = Bundle.open(args.path)
    report = bundle_report(Path(args.path), bundle.manifest)
    if args.json:
        write_json(report)
    else:
        _write_report(report)
    return 0


def bundle_report(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Everything ``shoal inspect`` says about a bundle, as JSON-ready values."""
    model = manifest.model
    weights_bytes = sum(tensor.size for tensor in manifest.tensors.values())
    token_bytes = bundle_cache_token_bytes(model)
    return {
        "kind": "bundle",
        "path": str(folder),
        "format_version": manifest.format_version,
        "op_set_version": manifest.op_set_version,
        "shoal_version": manifest.shoal_version,
        "weights": manifest.weights,
        "formats": {kind: asdict(form) for kind, form in manifest.formats.items()},
        "model_type": model.model_type,
        "num_hidden_layers": model.num_hidden_layers,
        "num_moe_layers": len(model.moe_layers),
        "n_routed_experts": model.n_routed_experts,
        "num_experts_per_tok": model.num_experts_per_tok,
        "num_mtp_layers": model.num_mtp_layers,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_position_embeddings,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "token_read_bytes": manifest.token_read_bytes,
        "cache_token_bytes": token_bytes,
        "cache_types": {
            cache_type: bundle_cache_token_bytes(model, cache_type)
            for cache_type in CACHE_TYPES
            if graph_role("decoder", cache_type) in manifest.graphs
        },
        "weights_bytes": weights_bytes,
        "files": {name: info.size for name, info in manifest.files.items()},
        "memory": memory_rows(manifest),
        "fidelity": manifest.fidelity,
        "notes": list(manifest.notes),
    }


def memory_rows(manifest: Manifest) -> list[dict[str, int]]:
    """Memory that only the process uses, by length of the context and form of the ops.

    Returns:
        For each length: tokens, bytes of a float32 cache, and bytes in all with portable and, for
        quantized weights, with native kernels, which leave the weights in the mapped file.
    """
    forms: tuple[Form, ...] = ("native", "portable") if manifest.is_quantized else ("portable",)
    needs = [bundle_need(manifest, form) for form in forms]
    return [
        {"context_tokens": tokens, "cache_bytes": needs[0].cache_bytes(tokens)}
        | {f"{need.form}_bytes": need.anonymous_bytes(tokens) for need in needs}
        for tokens in context_lengths(manifest.model.max_position_embeddings)
    ]


def _write_report(report: dict[str, Any]) -> None:
    active, total = report["active_parameters"], report["parameters"]
    rows = [
        ("model", f"{report['model_type']}, {report['num_hidden_layers']} layers"),
        ("weights", f"{report['weights']}, {format_bytes(report['weights_bytes'])}"),
        ("parameters", format_count(total)),
        ("active per token", f"{format_count(active)} ({format_rate(100 * active / total)} %)"),
        ("read per token", format_bytes(report["token_read_bytes"])),
        (
            "latent cache per token",
            ", ".join(f"{name} {format_bytes(n)}" for name, n in report["cache_types"].items()),
        ),
        ("longest context", f"{report['max_position_embeddings']} tokens"),
        ("experts", experts_text(report)),
        ("MTP modules", str(report["num_mtp_layers"])),
        ("written by", f"shoal {report['shoal_version']}, format {report['format_version']}"),
    ]
    write_pairs(report["path"], rows)
    formats = {kind: WeightFormat(**form) for kind, form in report["formats"].items()}
    if formats:
        write_lines([""])
        write_pairs("Weights", format_rows(formats))
    write_lines([""])
    forms = [form for form in ("native", "portable") if f"{form}_bytes" in report["memory"][0]]
    write_grid(
        "Memory needed beside the mapped file (estimate)",
        ("context tokens", "float32 cache", *(f"in all, {form} kernels" for form in forms)),
        [
            (
                str(row["context_tokens"]),
                format_bytes(row["cache_bytes"]),
                *(format_bytes(row[f"{form}_bytes"]) for form in forms),
            )
            for row in report["memory"]
        ],
    )
    write_lines([""])
    write_pairs("Files", [(name, format_bytes(size)) for name, size in report["files"].items()])
    write_lines([""])
    if report["fidelity"]:
        write_pairs("Fidelity to the float32 model", fidelity_rows(report["fidelity"]))
    else:
        write_lines(["Fidelity: not measured when this bundle was exported"])
    write_lines([f"note: {note}" for note in report["notes"]])
