"""Checkpoint to bundle: ``export_bundle``, what it returns, and the errors it raises.

Needs torch, onnx and safetensors: ``pip install 'shoal[export]'``. Names are imported when they are
first used, so that catching an error needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.export.pipeline import ExportReport, export_bundle
    from shoal.graphs.errors import (
        CheckpointError,
        ConfigError,
        ExportError,
        InputError,
        ShoalError,
    )

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ExportError",
    "ExportReport",
    "InputError",
    "ShoalError",
    "export_bundle",
]

_HOMES = {
    "CheckpointError": "shoal.graphs.errors",
    "ConfigError": "shoal.graphs.errors",
    "ExportError": "shoal.graphs.errors",
    "ExportReport": "shoal.export.pipeline",
    "InputError": "shoal.graphs.errors",
    "ShoalError": "shoal.graphs.errors",
    "export_bundle": "shoal.export.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
