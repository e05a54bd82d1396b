"""``shoal bench``: how fast a bundle is on this machine, and how much memory it takes."""

from __future__ import annotations

import argparse
import time
from typing import Any

from shoal.graphs.errors import InputError
from shoal.graphs.footprint import bundle_cache_token_bytes
from shoal.runtime.bench.batch import measure_batch, write_batch
from shoal.runtime.bench.board_report import board_report, write_board_report
from shoal.runtime.bench.caches import SCORED_TOKENS, measure_cache_types, write_cache_types
from shoal.runtime.bench.speculate import measure_speculation, write_speculation
from shoal.runtime.bench.timing import median_s, random_ids
from shoal.runtime.commands.option_values import machine_options
from shoal.runtime.console.report import (
    progress_line,
    write_grid,
    write_json,
    write_lines,
    write_pairs,
)
from shoal.runtime.engine.context import Context
from shoal.runtime.kernels.library import KernelLibrary, find_library
from shoal.runtime.machine.bandwidth import measure_read_bandwidth
from shoal.runtime.machine.board import read_condition
from shoal.runtime.machine.memory import ResidentMemory, read_resident
from shoal.runtime.machine.processor import read_cpu
from shoal.runtime.model import Model, open_bundle
from shoal.runtime.units import format_bytes, format_rate

_WARM_UP_TOKENS = 2


def bench_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal bench``."""
    condition = read_condition()
    if args.json and args.report == "-":
        raise InputError("bench --json: stdout can hold one report; name a file with --report")
    before = read_resident()
    started_s = time.perf_counter()
    model = open_bundle(args.bundle, **machine_options(args))
    load_s = time.perf_counter() - started_s
    loaded = read_resident()
    if args.speculate and not model.can_draft:
        raise InputError(
            f"{args.bundle}: --speculate needs a multi-token-prediction module, which this bundle "
            "has not; leave it out"
        )
    report = _describe(args, model, load_s)
    if args.cache_kl:
        depths = _fitting(model, args.depths, SCORED_TOKENS)
        report["cache_kl"] = measure_cache_types(model, depths, machine_options(args))
    report["prefill"] = measure_prefill(model, _fitting(model, args.prefill, 0), args.repeats)
    report["decode"] = measure_decode(
        model, _fitting(model, args.depths, args.new_tokens), args.new_tokens, args.repeats
    )
    if args.batch:
        depth = _fitting(model, args.depths, args.new_tokens)[0]
        report["batch"] = measure_batch(model, args.batch, depth, args.new_tokens, args.repeats)
    if args.speculate:
        options = machine_options(args)
        report["speculation"] = measure_speculation(model, args.new_tokens, args.repeats, options)
    report["memory"] = {
        "before": _resident(before),
        "loaded": _resident(loaded),
        "after": _resident(read_resident()),
    }
    if args.json:
        write_json(report)
    elif args.report != "-":
        _write_report(report)
    if args.report is not None:
        progress_line("bench: memory bandwidth")
        bandwidth = measure_read_bandwidth(model.threads)
        write_board_report(board_report(report, model, condition, bandwidth), args.report)
    return 0


def measure_prefill(model: Model, lengths: tuple[int, ...], repeats: int) -> list[dict[str, float]]:
    """Prompt reading speed, the head's logits for the last position included.

    Args:
        model: the open bundle.
        lengths: prompt lengths in tokens.
        repeats: measurements per length, after one warm-up.

    Returns:
        For each length: tokens, median milliseconds, tokens per second.
    """
    rows = []
    for length in lengths:
        progress_line(f"bench: prefill of {length} tokens")
        ids = random_ids(model, length)
        context = model.new_context()
        seconds = median_s(lambda: _prefill_anew(context, ids), repeats)  # noqa: B023
        rows.append({"tokens": length, "ms": seconds * 1000, "tokens_per_s": length / seconds})
    return rows


def measure_decode(
    model: Model, depths: tuple[int, ...], new_tokens: int, repeats: int
) -> list[dict[str, float]]:
    """Speed of token-by-token decoding with a given number of tokens in the context.

    Args:
        model: the open bundle.
        depths: tokens in the context before the first decoded one; at 0 the context is empty.
        new_tokens: tokens decoded per measurement.
        repeats: measurements per depth, after a warm-up.

    Returns:
        For each depth: depth, median milliseconds per token, tokens per second, and the bytes of
        weights and cache read per second.
    """
    rows = []
    for depth in depths:
        progress_line(f"bench: decode at depth {depth}")
        context = model.new_context()
        if depth:
            context.prefill(random_ids(model, depth))
        ids = random_ids(model, new_tokens)
        seconds = median_s(lambda: _decode_all(context, depth, ids), repeats)  # noqa: B023
        token_s = seconds / new_tokens
        rows.append(
            {
                "depth": depth,
                "ms_per_token": token_s * 1000,
                "tokens_per_s": 1 / token_s,
                "read_bytes_per_s": _token_bytes(model, depth + new_tokens // 2) / token_s,
            }
        )
    return rows


def _prefill_anew(context: Context, ids: list[int]) -> None:
    context.rewind(0)
    context.prefill(ids)


def _decode_all(context: Context, depth: int, ids: list[int]) -> None:
    context.rewind(depth)
    for token in ids:
        context.decode(token)


def _token_bytes(model: Model, depth: int) -> int:
    """Bytes one decoded token must read: its weights and the cache of all tokens before it."""
    return model.manifest.token_read_bytes + depth * _cache_bytes(model)


def _cache_bytes(model: Model) -> int:
    return bundle_cache_token_bytes(model.manifest.model, model.cache_type)


def _fitting(model: Model, lengths: tuple[int, ...], room: int) -> tuple[int, ...]:
    limit = model.max_context
    too_long = [length for length in lengths if length + room > limit]
    if too_long:
        listed = ", ".join(map(str, too_long))
        progress_line(f"bench: left out {listed}: the context ends at {limit} tokens")
    fitting = tuple(length for length in lengths if length + room <= limit)
    if not fitting:
        raise InputError(
            f"bench: expected lengths of at most {limit - room} tokens, found {listed}; give less"
        )
    return fitting


def _resident(memory: ResidentMemory | None) -> dict[str, int | None]:
    return {
        "anonymous_bytes": memory.anonymous_bytes if memory else None,
        "file_bytes": memory.file_bytes if memory else None,
    }


def _describe(args: argparse.Namespace, model: Model, load_s: float) -> dict[str, Any]:
    cpu, library, isa = read_cpu(), find_library(), None
    if model.kernels == "native" and isinstance(library, KernelLibrary):
        isa = library.isa
    return {
        "bundle": str(args.bundle),
        "weights": model.manifest.weights,
        "kernels": model.kernels,
        "isa": isa,
        "threads": model.threads,
        "cpu": cpu.model,
        "cpu_features": list(cpu.features),
        "load_ms": load_s * 1000,
        "token_read_bytes": model.manifest.token_read_bytes,
        "cache": model.cache_type,
        "cache_token_bytes": _cache_bytes(model),
        "new_tokens": args.new_tokens,
        "repeats": args.repeats,
    }


def _write_report(report: dict[str, Any]) -> None:
    features = " ".join(report["cpu_features"])
    isa = f" ({report['isa']})" if report["isa"] else ""
    write_pairs(
        report["bundle"],
        [
            ("machine", f"{report['cpu']} ({features}), {report['threads']} threads"),
            ("form", f"{report['weights']} weights, {report['kernels']} kernels{isa}"),
            ("opened in", f"{report['load_ms']:.0f} ms"),
            ("weights read per token", format_bytes(report["token_read_bytes"])),
            ("cache per token", f"{format_bytes(report['cache_token_bytes'])} ({report['cache']})"),
        ],
    )
    write_lines([""])
    write_grid(
        "Prefill (median)",
        ("prompt tokens", "ms", "tokens/s"),
        [
            (str(row["tokens"]), format_rate(row["ms"]), format_rate(row["tokens_per_s"]))
            for row in report["prefill"]
        ],
    )
    write_lines([""])
    write_grid(
        f"Decode (median of {report['repeats']} times {report['new_tokens']} tokens)",
        ("tokens in context", "ms per token", "tokens/s", "read per second"),
        [
            (
                str(row["depth"]),
                format_rate(row["ms_per_token"]),
                format_rate(row["tokens_per_s"]),
                format_bytes(row["read_bytes_per_s"]),
            )
            for row in report["decode"]
        ],
    )
    if "batch" in report:
        write_batch(report["batch"])
    if "speculation" in report:
        write_speculation(report["speculation"])
    if "cache_kl" in report:
        write_cache_types(report["cache_kl"])
    write_lines([""])
    write_grid("Memory", ("when", "anonymous", "mapped files"), _memory_rows(report["memory"]))


def _memory_rows(memory: dict[str, dict[str, int | None]]) -> list[tuple[str, ...]]:
    labels = {"before": "before opening", "loaded": "opened", "after": "after the runs"}
    return [
        (
            labels[when],
            *(
                "unknown" if value is None else format_bytes(value)
                for value in (found["anonymous_bytes"], found["file_bytes"])
            ),
        )
        for when, found in memory.items()
    ]
