"""The options of ``shoal doctor``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_doctor_options(verb: argparse.ArgumentParser) -> None:
    """Set what ``shoal doctor`` takes."""
    verb.description = (
        "Say which versions are installed, what this processor can do, how much memory there is, "
        "and which form of each op runs and why; with a bundle, whether it opens and fits. Exit "
        "status 1 when something keeps shoal from running."
    )
    verb.epilog = "example:\n  shoal doctor build/tiny"
    verb.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="bundle to check too")
