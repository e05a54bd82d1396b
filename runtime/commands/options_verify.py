"""The options of ``shoal verify``."""

from __future__ import annotations

import argparse

from shoal.graphs.model_forms import CHECKPOINT_FORMS
from shoal.runtime.commands.options_common import add_bundle, add_hub_options


def add_verify_options(verb: argparse.ArgumentParser) -> None:
    """Set what ``shoal verify`` takes."""
    verb.description = (
        "Read every byte of a bundle and compare it with the checksums in its manifest. With "
        "--checkpoint also derive every weight and the fidelity report from the checkpoint again "
        "and compare them (needs the export extra). Opening a bundle, as `run` does, checks sizes "
        "and graphs but not every weight."
    )
    verb.epilog = "example:\n  shoal verify build/tiny --checkpoint checkpoints/tiny-v3"
    add_bundle(verb)
    verb.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        help=f"what the bundle was made from: {CHECKPOINT_FORMS}",
    )
    add_hub_options(verb)
