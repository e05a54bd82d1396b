"""The options of ``shoal export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from shoal.graphs.fidelity import DEFAULT_CALIBRATE_TOKENS, DEFAULT_FIDELITY_TOKENS
from shoal.graphs.model_forms import CHECKPOINT_FORMS
from shoal.graphs.recipes import BLOCK_SIZES, DEFAULT_RECIPE, FLOAT32, RECIPES, WEIGHT_CHOICES
from shoal.runtime.commands.option_types import positive_int
from shoal.runtime.commands.options_common import add_hub_options


def add_export_options(verb: argparse.ArgumentParser) -> None:
    """Set what ``shoal export`` takes."""
    verb.description = (
        "Read a checkpoint and write a bundle: a folder that runs with nothing but `pip install "
        "shoal`. Weights are streamed, so a model larger than memory can be exported. The bundle "
        "appears only when it is complete and checked. Needs the export extra: pip install "
        "'shoal[export]'."
    )
    verb.epilog = (
        "examples:\n"
        "  shoal export checkpoints/tiny-v3 build/tiny --weights int8\n"
        "  shoal export deepseek-ai/DeepSeek-V2-Lite build/lite --dry-run"
    )
    verb.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_FORMS)
    add_bundle_options(verb)


def add_bundle_options(verb: argparse.ArgumentParser) -> None:
    """Add all that ``shoal export`` takes beside the checkpoint; optimum-cli takes it too."""
    verb.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder to create")
    _add_weight_options(verb)
    _add_writing_options(verb)
    _add_text_options(verb)
    add_hub_options(verb)


def _add_weight_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--weights",
        choices=WEIGHT_CHOICES,
        default=DEFAULT_RECIPE,
        help="recipe that says how weights are stored: "
        + "; ".join(f"{recipe.name}, {recipe.meaning}" for recipe in RECIPES.values())
        + f"; {FLOAT32}, for debugging (default: {DEFAULT_RECIPE})",
    )
    verb.add_argument(
        "--block-size",
        type=int,
        choices=BLOCK_SIZES,
        metavar="N",
        help="number of 8-bit weights that share one scale: 16, 32, 64, 128 or 256; smaller blocks "
        "are more exact and take more room (default: the recipe's)",
    )


def _add_writing_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--force", action="store_true", help="replace an existing bundle")
    verb.add_argument(
        "--resume",
        action="store_true",
        help="continue a stopped export from its last complete layer; if this one is stopped, keep "
        "what it has written",
    )
    verb.add_argument(
        "--dry-run",
        action="store_true",
        help="check the checkpoint and say what would be written and what running it will need; "
        "write nothing",
    )


def _add_text_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--fidelity-text",
        metavar="FILE",
        type=Path,
        help="text on which the bundle is compared with the float32 model (default: a text that "
        "comes with shoal)",
    )
    verb.add_argument(
        "--fidelity-tokens",
        type=positive_int,
        default=DEFAULT_FIDELITY_TOKENS,
        metavar="N",
        help=f"tokens of that text to use at most (default: {DEFAULT_FIDELITY_TOKENS})",
    )
    verb.add_argument(
        "--calibrate",
        metavar="FILE",
        type=Path,
        help="round 4-bit weights so that errors are small on this text, which should be like what "
        "the model will be used on: divergence falls by a quarter to a third (--weights "
        "int4-experts)",
    )
    verb.add_argument(
        "--calibrate-tokens",
        type=positive_int,
        default=DEFAULT_CALIBRATE_TOKENS,
        metavar="N",
        help=f"tokens of that text to use at most (default: {DEFAULT_CALIBRATE_TOKENS})",
    )
    verb.add_argument(
        "--no-fidelity",
        action="store_true",
        help="skip the comparison: faster, but the accuracy loss is not measured",
    )
