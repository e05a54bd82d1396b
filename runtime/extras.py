"""The export extra: present or not, and the only way from the command line into shoal.export.

Nothing here imports shoal.export by name: a device install never needs what it needs.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from shoal.graphs.errors import RuntimeFailure
from shoal.graphs.model_forms import model_form

EXPORT_MODULES = ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors")
EXPORT_INSTALL = "pip install 'shoal[export]'"


def missing_export_modules() -> list[str]:
    """Modules of the export extra that are not installed; nothing is imported to find out."""
    return [name for name in EXPORT_MODULES if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def load_export(module: str, *, what: str) -> Any:
    """A module of shoal.export, imported when it is first asked for.

    Args:
        module: its full name.
        what: the user's word for what needs it, for the message.

    Raises:
        RuntimeFailure: a module of the export extra is missing.
    """
    missing = missing_export_modules()
    if missing:
        raise RuntimeFailure(
            f"{what} needs the export extra, of which {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed: {EXPORT_INSTALL}"
        )
    return importlib.import_module(module)


def load_for_checkpoint(module: str, name: str | Path, *, what: str) -> Any:
    """``load_export`` for a name that could have been a bundle's.

    Args:
        module: see ``load_export``.
        name: what the user gave; if it is a mistyped path, the message says so.
        what: see ``load_export``.

    Raises:
        RuntimeFailure: see ``load_export``.
    """
    if model_form(name) == "hub":
        what = f"{name}: no such bundle or checkpoint here, and asking the Hugging Face Hub"
    return load_export(module, what=what)
