"""The options of ``shoal inspect``."""

from __future__ import annotations

import argparse

from shoal.graphs.model_forms import CHECKPOINT_FORMS
from shoal.runtime.commands.options_common import add_hub_options


def add_inspect_options(verb: argparse.ArgumentParser) -> None:
    """Set what ``shoal inspect`` takes."""
    verb.description = (
        "Read the manifest of a bundle, or the config and the tensor headers of a checkpoint, "
        "and say how many parameters the model has and uses, how many bytes a token reads, and "
        "how much memory it needs. A checkpoint needs the export extra."
    )
    verb.epilog = "example:\n  shoal inspect build/tiny --json"
    verb.add_argument(
        "path",
        metavar="BUNDLE|CHECKPOINT",
        help=f"bundle folder or checkpoint: {CHECKPOINT_FORMS}",
    )
    add_hub_options(verb)
