"""Checkpoints that a command names: what is on the hub is fetched before a verb begins its work."""

from __future__ import annotations

import argparse
from pathlib import Path

from shoal.runtime.console.report import progress_line
from shoal.runtime.extras import load_for_checkpoint


def fetch_checkpoint(name: str, args: argparse.Namespace, *, what: str) -> Path:
    """Where a checkpoint is; one on the hub is fetched first, which stderr tells.

    Args:
        name: a path, or ORG/NAME on the hub.
        args: the options of a verb that takes ``--revision`` and ``--token``.
        what: what needs it, should the export extra be missing.

    Raises:
        CheckpointError: the hub cannot be reached, or does not give the checkpoint away.
        InputError: a revision of a path was asked for.
        RuntimeFailure: the export extra is not installed.
    """
    hub = load_for_checkpoint("shoal.export.checkpoint.hub", name, what=what)
    access = hub.HubAccess(revision=args.revision, token=args.token)
    path: Path = hub.local_checkpoint(
        name, access, lambda text: progress_line(f"{args.verb}: {text}")
    )
    return path
