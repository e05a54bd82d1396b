"""The options of ``shoal bench``."""

from __future__ import annotations

import argparse

from shoal.runtime.commands.option_types import length_list, positive_int, positive_length_list
from shoal.runtime.commands.options_common import add_bundle, add_machine_options

DEFAULT_DEPTHS = (0, 512, 1024)
DEFAULT_PREFILL = (128, 512)
DEFAULT_NEW_TOKENS = 16
DEFAULT_REPEATS = 3


def add_bench_options(verb: argparse.ArgumentParser) -> None:
    """Set what ``shoal bench`` takes."""
    verb.description = (
        "Measure a bundle on this machine with random tokens: time to open, prefill speed by "
        "prompt length, decode speed by context depth, and memory. One warm-up, then medians of "
        "the repeats. Lengths beyond the model's limit are left out and named on stderr."
    )
    verb.epilog = "example:\n  shoal bench build/tiny --depths 0,1024 --prefill 128 --json"
    add_bundle(verb)
    _add_lengths(verb)
    _add_more_measurements(verb)
    add_machine_options(verb)


def _add_lengths(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--depths",
        type=length_list,
        default=DEFAULT_DEPTHS,
        metavar="N,..",
        help="tokens in the context before decoding starts "
        f"(default: {','.join(map(str, DEFAULT_DEPTHS))})",
    )
    verb.add_argument(
        "--prefill",
        type=positive_length_list,
        default=DEFAULT_PREFILL,
        metavar="N,..",
        help=f"prompt lengths in tokens (default: {','.join(map(str, DEFAULT_PREFILL))})",
    )
    verb.add_argument(
        "--new-tokens",
        type=positive_int,
        default=DEFAULT_NEW_TOKENS,
        metavar="N",
        help=f"tokens decoded per repeat (default: {DEFAULT_NEW_TOKENS})",
    )
    verb.add_argument(
        "--repeats",
        type=positive_int,
        default=DEFAULT_REPEATS,
        metavar="N",
        help=f"measurements per figure, of which the median counts (default: {DEFAULT_REPEATS})",
    )


def _add_more_measurements(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--batch",
        type=positive_length_list,
        default=(),
        metavar="N,..",
        help="also measure decoding N contexts in one step, at the first of the depths",
    )
    verb.add_argument(
        "--speculate",
        action="store_true",
        help="also measure how much faster drafts of the multi-token-prediction module make "
        "decoding",
    )
    verb.add_argument(
        "--cache-kl",
        action="store_true",
        help="also measure how far predictions over float16 and int8 caches are from those over a "
        "float32 cache, on the text that comes with shoal and at the same depths",
    )
    verb.add_argument(
        "--report",
        metavar="FILE",
        help="also write the figures of this board to a JSON file (- for stdout): cores, governor, "
        "temperature, memory bandwidth and what share of it is used; and print a row for the "
        "table in docs/benchmarks.md",
    )
