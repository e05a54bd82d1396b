"""The tables of ``shoal bench``."""

from __future__ import annotations

from typing import Any

from shoal.runtime.bench.caches import SCORED_TOKENS
from shoal.runtime.console.report import write_grid, write_lines, write_pairs
from shoal.runtime.units import format_bytes, format_rate


def write_report(report: dict[str, Any]) -> None:
    """Print what ``shoal bench`` measured."""
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
    _write_sampling(report["sampling"])
    if "batch" in report:
        _write_batch(report["batch"])
    if "speculation" in report:
        _write_speculation(report["speculation"])
    if "cache_kl" in report:
        _write_cache_types(report["cache_kl"])
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


def _write_sampling(rows: list[dict[str, Any]]) -> None:
    sizes = sorted({row["vocab_size"] for row in rows})
    ms = {(row["form"], row["vocab_size"]): f"{row['ms_per_token']:.3f}" for row in rows}
    write_lines([""])
    write_grid(
        "Choosing a token (one core, least of the repeats, beside computing it)",
        ("options", *(f"ms of {size} tokens" for size in sizes)),
        [(form, *(ms[form, size] for size in sizes)) for form in dict.fromkeys(f for f, _ in ms)],
    )


def _write_batch(rows: list[dict[str, float]]) -> None:
    write_lines([""])
    write_grid(
        f"Several contexts in one step ({rows[0]['depth']} tokens in each)",
        ("contexts", "ms per step", "tokens/s", "one by one", "gain"),
        [
            (
                str(row["contexts"]),
                format_rate(row["ms_per_step"]),
                format_rate(row["tokens_per_s"]),
                format_rate(row["apart_tokens_per_s"]),
                f"{row['tokens_per_s'] / row['apart_tokens_per_s']:.2f}",
            )
            for row in rows
        ],
    )


def _write_speculation(report: dict[str, Any]) -> None:
    write_lines([""])
    write_grid(
        "Steps of several tokens (relative to a step of one, measured alternately)",
        ("tokens", "ms", "cost", "experts"),
        [
            (
                str(row["tokens"]),
                format_rate(row["ms"]),
                f"{row['cost']:.2f}",
                f"{row['experts']:.2f}",
            )
            for row in report["steps"]
        ],
    )
    write_lines([""])
    write_grid(
        f"Drafts ({report['new_tokens']} greedy tokens after {report['prompt_tokens']}, measured "
        "alternately with plain decoding)",
        ("draft", "accepted by position", "tokens per step", "break-even", "speed-up"),
        [
            (
                f"{row['draft']}, first text" if row["first_text"] else str(row["draft"]),
                " ".join(f"{share:.0%}" for share in row["acceptance"]) or "-",
                f"{row['tokens_per_step']:.2f}",
                f"{row['break_even_tokens_per_step']:.2f}",
                f"{row['speed_up']:.2f}x",
            )
            for row in report["drafts"]
        ],
    )
    if not report["is_possible"]:
        write_lines(
            ["Nothing was drafted: these kernels round steps of several tokens differently"]
        )


def _write_cache_types(rows: list[dict[str, Any]]) -> None:
    write_lines([""])
    write_grid(
        f"Cache types against float32 ({SCORED_TOKENS} tokens at each depth)",
        ("cache", "per token", "depth", "mean KL", "median KL", "same top-1 token"),
        [
            (
                row["cache"],
                format_bytes(row["cache_token_bytes"]),
                str(row["depth"]),
                f"{row['kl_mean']:.1e}",
                f"{row['kl_median']:.1e}",
                f"{row['same_top']:.1%}",
            )
            for row in rows
        ],
    )
