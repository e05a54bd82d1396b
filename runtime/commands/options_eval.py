"""The options of ``shoal eval``."""

from __future__ import annotations

import argparse
from pathlib import Path

from shoal.graphs.model_forms import CHECKPOINT_FORMS
from shoal.runtime.commands.option_types import non_negative_int, positive_int
from shoal.runtime.commands.options_common import add_hub_options, add_machine_options
from shoal.runtime.evaluation.defaults import DEFAULT_WINDOW


def add_eval_options(verb: argparse.ArgumentParser) -> None:
    """Set what ``shoal eval`` takes."""
    verb.description = (
        "Run models on the same texts and tasks and measure perplexity, bits per byte, accuracy "
        "and, against a reference, KL divergence and agreement on tokens and experts, with 95 % "
        "confidence intervals. A model is a bundle or, with the export extra, a checkpoint, which "
        "runs in float32. All models are open at once; models that do not fit in memory "
        "together can be measured one by one against a stored reference."
    )
    verb.epilog = (
        "examples:\n"
        "  shoal eval checkpoints/tiny-v3 build/tiny\n"
        "  shoal eval checkpoints/tiny-v3 --text book.txt --save-reference book.ref\n"
        "  shoal eval build/tiny --text book.txt --reference book.ref --html report.html"
    )
    verb.add_argument(
        "models",
        metavar="BUNDLE|CHECKPOINT",
        nargs="+",
        help=f"models to evaluate: bundle folders or checkpoints, each of them {CHECKPOINT_FORMS}",
    )
    _add_text_options(verb)
    _add_comparison_options(verb)
    verb.add_argument(
        "--html", metavar="FILE", type=Path, help="also write a page with tables and plots"
    )
    add_hub_options(verb)
    add_machine_options(verb)


def _add_text_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--text",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help='UTF-8 text, or .jsonl with a "text" in each line, also as .xz or .gz; may be given '
        "several times (default: a text that comes with shoal)",
    )
    verb.add_argument(
        "--window",
        type=positive_int,
        default=DEFAULT_WINDOW,
        metavar="N",
        help=f"tokens of each window, read from an empty context (default: {DEFAULT_WINDOW})",
    )
    verb.add_argument(
        "--tokens", type=positive_int, metavar="N", help="use at most N tokens of text"
    )


def _add_comparison_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--reference",
        metavar="MODEL",
        help="bundle, checkpoint or stored reference to compare with (default: the first of "
        "several models)",
    )
    verb.add_argument(
        "--save-reference",
        metavar="FILE",
        type=Path,
        help="store what the reference predicts, to compare other models with it later",
    )
    verb.add_argument(
        "--tasks",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help='multiple-choice items in HellaSwag\'s format: JSON lines with "ctx", "endings" and '
        '"label"; may be given several times',
    )
    verb.add_argument(
        "--generate",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="compare N greedily decoded tokens after the beginnings of 8 windows (default: 0, "
        "none)",
    )
