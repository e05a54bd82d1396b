"""Bundle to tokens on any CPU: ``open_bundle``, what it returns, and ``evaluate``.

Names are imported when they are first used, so that reading a manifest needs no onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.runtime.engine.context import Context
    from shoal.runtime.evaluation.evaluate import evaluate
    from shoal.runtime.kernels.library import end_on_lost_weights
    from shoal.runtime.model import Model
    from shoal.runtime.opening import open_bundle

__all__ = ["Context", "Model", "end_on_lost_weights", "evaluate", "open_bundle"]

_HOMES = {
    "Context": "shoal.runtime.engine.context",
    "Model": "shoal.runtime.model",
    "end_on_lost_weights": "shoal.runtime.kernels.library",
    "evaluate": "shoal.runtime.evaluation.evaluate",
    "open_bundle": "shoal.runtime.opening",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
