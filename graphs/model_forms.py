"""What a name that is given for a model stands for: a bundle, or one of the forms of a checkpoint.

Export and runtime ask here, so that a name means the same to every verb. Standard library only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from shoal.graphs.contract import MANIFEST_FILE
from shoal.graphs.errors import InputError

ModelForm = Literal["bundle", "folder", "gguf", "hub"]

CHECKPOINT_FORMS = (
    "a Hugging Face folder (config.json and *.safetensors), a .gguf file, or ORG/NAME on the "
    "Hugging Face Hub"
)
"""What a checkpoint can be, in the words of every help text and message."""

GGUF_SUFFIX = ".gguf"

_CONFIG_FILE = "config.json"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def model_form(name: str | Path) -> ModelForm | None:
    """What ``name`` stands for; nothing is read.

    Args:
        name: A text may be ORG/NAME on the hub, if there is nothing of that name on the disk and it
            does not end in .gguf; a Path is never looked for on the hub.

    Returns:
        "bundle", or for a checkpoint "folder", "gguf" or "hub"; None for what cannot be a model.
    """
    path = Path(name)
    if (path / MANIFEST_FILE).exists():
        return "bundle"
    if path.suffix == GGUF_SUFFIX and not path.is_dir():
        return "gguf"
    if path.exists():
        has_files = (path / _CONFIG_FILE).exists() or any(path.glob("*.safetensors"))
        return "folder" if has_files else None
    return "hub" if isinstance(name, str) and _HUB_ID.fullmatch(name) else None


def check_revision(name: str | Path, revision: str | None) -> None:
    """Refuse a revision for a checkpoint that is not on the hub.

    Raises:
        InputError: there is one.
    """
    if revision is not None and model_form(name) != "hub":
        raise InputError(
            f"{name}: --revision is for ORG/NAME on the Hugging Face Hub, found a path; leave it "
            "out or check the name"
        )


def is_checkpoint(name: str | Path) -> bool:
    """Whether a name that may be a bundle's or a checkpoint's is a checkpoint's.

    Raises:
        InputError: it is neither's.
    """
    form = model_form(name)
    if form is None:
        path = Path(name)
        found = "an empty or other folder" if path.is_dir() else "no such folder"
        if path.is_file():
            found = "another file"
        raise InputError(
            f"{name}: expected a bundle (a folder with {MANIFEST_FILE}) or a checkpoint, which is "
            f"{CHECKPOINT_FORMS}; found {found}; check the path"
        )
    return form != "bundle"
