"""``shoal bench``: how fast a bundle is on this machine, and how much memory it takes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from shoal.graphs.errors import InputError
from shoal.graphs.footprint import bundle_cache_token_bytes
from shoal.runtime.atomic_file import check_place
from shoal.runtime.bench.batch import measure_batch
from shoal.runtime.bench.board_report import board_report
from shoal.runtime.bench.caches import SCORED_TOKENS, measure_cache_types
from shoal.runtime.bench.sampling import measure_sampling
from shoal.runtime.bench.speculate import measure_speculation
from shoal.runtime.bench.speed import measure_decode, measure_prefill
from shoal.runtime.commands.bench_tables import write_report
from shoal.runtime.commands.board_row import REPORT, write_board_report
from shoal.runtime.commands.option_values import machine_options
from shoal.runtime.console.report import progress_line, write_json
from shoal.runtime.kernels.library import KernelLibrary, find_library
from shoal.runtime.machine.bandwidth import measure_read_bandwidth
from shoal.runtime.machine.board import read_condition
from shoal.runtime.machine.memory import ResidentMemory, read_resident
from shoal.runtime.machine.processor import read_cpu
from shoal.runtime.model import Model
from shoal.runtime.opening import open_bundle


def bench_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal bench``."""
    condition = read_condition()
    if args.json and args.report == "-":
        raise InputError("bench --json: stdout can hold one report; name a file with --report")
    if args.report not in (None, "-"):
        check_place(Path(args.report), REPORT)
    before = read_resident()
    started_s = time.perf_counter()
    model = open_bundle(args.bundle, **machine_options(args))
    load_s = time.perf_counter() - started_s
    loaded = read_resident()
    if args.speculate and not model.can_draft:
        raise InputError(
            f"{args.bundle}: --speculate needs a multi-token-prediction module, this bundle has "
            "none; leave it out"
        )
    report = _describe(args, model, load_s) | _measure(args, model)
    report["memory"] = {
        "before": _resident(before),
        "loaded": _resident(loaded),
        "after": _resident(read_resident()),
    }
    if args.json:
        write_json(report)
    elif args.report != "-":
        write_report(report)
    if args.report is not None:
        _say("memory bandwidth")
        bandwidth = measure_read_bandwidth(model.threads)
        write_board_report(board_report(report, model, condition, bandwidth), args.report)
    return 0


def _measure(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """All that was asked for, by name."""
    new_tokens, repeats, options = args.new_tokens, args.repeats, machine_options(args)
    found: dict[str, Any] = {}
    if args.cache_kl:
        depths = _fitting(model, args.depths, SCORED_TOKENS)
        found["cache_kl"] = measure_cache_types(model, depths, options, _say)
    lengths = _fitting(model, args.prefill, 0)
    found["prefill"] = measure_prefill(model, lengths, repeats, _say)
    depths = _fitting(model, args.depths, new_tokens)
    found["decode"] = measure_decode(model, depths, new_tokens, repeats, _say)
    vocab_size = model.manifest.model.vocab_size
    found["sampling"] = measure_sampling(vocab_size, repeats, _say)
    if args.batch:
        found["batch"] = measure_batch(model, args.batch, depths[0], new_tokens, repeats, _say)
    if args.speculate:
        found["speculation"] = measure_speculation(model, new_tokens, repeats, options, _say)
    return found


def _say(what: str) -> None:
    progress_line(f"bench: {what}")


def _fitting(model: Model, lengths: tuple[int, ...], room: int) -> tuple[int, ...]:
    limit = model.max_context
    too_long = [length for length in lengths if length + room > limit]
    if too_long:
        listed = ", ".join(map(str, too_long))
        _say(f"left out {listed}: the context ends at {limit} tokens")
    fitting = tuple(length for length in lengths if length + room <= limit)
    if not fitting:
        raise InputError(
            f"bench: expected lengths of at most {limit - room} tokens, found {listed}; choose "
            "shorter ones"
        )
    return fitting


def _resident(memory: ResidentMemory | None) -> dict[str, int | None]:
    return {
        "anonymous_bytes": memory.anonymous_bytes if memory else None,
        "file_bytes": memory.file_bytes if memory else None,
    }


def _describe(args: argparse.Namespace, model: Model, load_s: float) -> dict[str, Any]:
    cpu = read_cpu()
    return {
        "bundle": str(args.bundle),
        "weights": model.manifest.weights,
        "kernels": model.kernels,
        "isa": _isa(model),
        "threads": model.threads,
        "cpu": cpu.model,
        "cpu_features": list(cpu.features),
        "load_ms": load_s * 1000,
        "token_read_bytes": model.manifest.token_read_bytes,
        "cache": model.cache_type,
        "cache_token_bytes": bundle_cache_token_bytes(model.manifest.model, model.cache_type),
        "new_tokens": args.new_tokens,
        "repeats": args.repeats,
    }


def _isa(model: Model) -> str | None:
    """The instructions that native kernels use, None where portable ones run."""
    library = find_library()
    is_native = model.kernels == "native" and isinstance(library, KernelLibrary)
    return library.isa if is_native and isinstance(library, KernelLibrary) else None
