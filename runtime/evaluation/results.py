"""What an evaluation found, as plain values."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.graphs.errors import RuntimeFailure


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and the interval that holds it with 95 % confidence."""

    value: float
    low: float | None  # None with a single window or item, which has no interval
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How close a model is to the reference."""

    kl_mean: Estimate  # KL(reference || model) of the next token, nats
    kl_median: float
    kl_p99: float  # 99 % of the positions are below
    kl_p999: float
    kl_max: float
    perplexity_ratio: Estimate  # this perplexity by the reference's
    same_top: Estimate  # share of positions with the same top-1 token
    shared_top: Estimate  # share of the reference's top five that are in this model's top five
    same_experts: Estimate | None  # share of the reference's experts; None unless both have layers
    same_experts_by_layer: dict[int, float]  # by index of the decoder layer
    # Nats, of every position; not part of to_json.
    kl: npt.NDArray[np.float64] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Accuracy on multiple-choice items."""

    items: int
    acc: Estimate  # share of items whose right ending has the largest log-likelihood
    acc_norm: Estimate  # the same, log-likelihoods divided by the endings' characters
    acc_norm_gain: Estimate | None  # acc_norm minus the reference's


@dataclass(frozen=True, kw_only=True)
class GenerationScore:
    """How far this model's greedy continuation is the reference's."""

    prompts: int
    tokens: int  # continuation of each prompt
    mean_same: float  # tokens until the first that differs
    identical: float  # share of prompts with no token that differs


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One model."""

    name: str
    weights: str  # such as "int8"
    weight_bytes: int | None = None  # None for a stored reference
    bits_per_weight: float | None = None
    perplexity: Estimate
    bits_per_byte: Estimate  # of UTF-8 text, independent of the tokenizer
    agreement: Agreement | None = None  # None for the reference itself, and without one
    tasks: dict[str, TaskScore] = field(default_factory=dict)  # by name of the file
    generation: GenerationScore | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Models on the same texts and tasks."""

    texts: tuple[str, ...]
    tokens: int  # read by each model, those that begin a window included
    window: int  # tokens of a full window
    windows: int
    reference: str | None  # name of the model others are compared with
    models: tuple[ModelResult, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, rounded to six digits."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def to_frame(self) -> Any:
        """A pandas.DataFrame with a row for each model; intervals are columns of their own.

        Raises:
            RuntimeFailure: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise RuntimeFailure(
                "evaluation: a DataFrame needs pandas, which is not installed: "
                "pip install 'shoal[eval]'"
            ) from error
        rows = [_flat(model) for model in self.to_json()["models"]]
        return pandas.DataFrame(rows).set_index("name")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        kept = ((part.name, getattr(value, part.name)) for part in fields(value))
        return {name: _plain(item) for name, item in kept if not isinstance(item, np.ndarray)}
    return value


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under one name each; an estimate's own value has the estimate's name."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        name = prefix.removesuffix(".") if key == "value" else f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, "" if key == "agreement" else f"{name}.")
        elif value is not None:
            flat[name] = value
    return flat
