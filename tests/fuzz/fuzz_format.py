"""What the fuzzer knows of a format, and the valid examples that all formats are made from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

FORMATS = (
    *("manifest", "graph", "context", "reference", "pack", "template"),
    *("gguf", "safetensors", "tokenizer", "vocabulary", "service"),
)
"""All formats; each is a module of tests/fuzz/formats with a function ``make``."""

Use = Callable[[], object]
"""What a user does with an input. A ``ShoalError`` refuses it, ``AcceptedDamage`` is a finding."""


class AcceptedDamage(BaseException):
    """An input was taken for sound that is not; no handler of shoal's may catch this."""


class FuzzFormat(Protocol):
    """Makes damaged inputs of one format."""

    def prepare(self, rng: Random, folder: Path) -> Use:
        """Write an input into an empty folder.

        Args:
            rng: decides all that is decided.
            folder: where the input goes; nothing outside of it may be written to.
        """


@dataclass(frozen=True)
class Samples:
    """What is sound.

    Attributes:
        checkpoint: Folder of a small model.
        bundle: Its bundle with int8 weights.
        work: Folder for what a format makes of them before the first case.
    """

    checkpoint: Path
    bundle: Path
    work: Path


def link_bundle(bundle: Path, folder: Path, without: tuple[str, ...] = ()) -> Path:
    """A bundle folder that has the files of another one: large ones are not copied."""
    folder.mkdir()
    for path in bundle.iterdir():
        if path.name not in without:
            try:
                (folder / path.name).hardlink_to(path)
            except OSError:  # on another disk
                shutil.copyfile(path, folder / path.name)
    return folder


def require(claim: bool, what: str) -> None:
    """Say what was accepted if a claim about it does not hold."""
    if not claim:
        raise AcceptedDamage(what)
