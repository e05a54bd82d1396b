"""The tables of an evaluation, the same on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.runtime.evaluation.results import Agreement, Estimate, Evaluation, ModelResult
from shoal.runtime.units import format_bytes

_ROUNDING = 1e-9  # nats, of float32 logits that differ in their last bits
FEW_WINDOWS = 20
"""Below this intervals are rough: there is little to draw from."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table; all columns but the first are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summary(result: Evaluation) -> str:
    """What was measured, in one line."""
    texts = ", ".join(result.texts)
    compared = f"; compared with {result.reference}" if result.reference else ""
    if result.windows == 1:
        return f"{texts}: {result.tokens} tokens in one window{compared}"
    few = ", few and therefore rough" if result.windows < FEW_WINDOWS else ""
    return (
        f"{texts}: {result.tokens} tokens in {result.windows} windows of {result.window}{compared}"
        f"; [95 % intervals over windows{few}]"
    )


def grids(result: Evaluation) -> list[Grid]:
    """All tables that there are figures for."""
    compared = [(model.name, model.agreement) for model in result.models if model.agreement]
    tables = [_quality(result.models)]
    if compared:
        tables += [_divergence(compared), _agreement(compared)]
    if any(agreement.same_experts_by_layer for _, agreement in compared):
        tables.append(_layers(compared))
    tables += [_task(result.models, name) for name in _task_names(result.models)]
    if any(model.generation for model in result.models):
        tables.append(_generation(result.models))
    return tables


def _quality(models: Sequence[ModelResult]) -> Grid:
    return Grid(
        title="Text",
        columns=("model", "weights", "size", "bits per weight", "perplexity", "bits per byte"),
        rows=tuple(
            (
                model.name,
                model.weights,
                "" if model.weight_bytes is None else format_bytes(model.weight_bytes),
                "" if model.bits_per_weight is None else f"{model.bits_per_weight:.2f}",
                with_interval(model.perplexity, "{:.4g}".format),
                with_interval(model.bits_per_byte, "{:.4g}".format),
            )
            for model in models
        ),
    )


def _divergence(compared: Sequence[tuple[str, Agreement]]) -> Grid:
    return Grid(
        title="KL divergence from the reference (nats)",
        columns=("model", "mean", "median", "99 % below", "99.9 % below", "largest"),
        rows=tuple(
            (
                name,
                with_interval(found.kl_mean, small),
                *map(small, (found.kl_median, found.kl_p99, found.kl_p999, found.kl_max)),
            )
            for name, found in compared
        ),
    )


def _agreement(compared: Sequence[tuple[str, Agreement]]) -> Grid:
    return Grid(
        title="Agreement with the reference",
        columns=("model", "perplexity ratio", "same top-1 token", "of top five", "same experts"),
        rows=tuple(
            (
                name,
                with_interval(found.perplexity_ratio, "{:.4f}".format),
                with_interval(found.same_top, percent),
                with_interval(found.shared_top, percent),
                "" if found.same_experts is None else with_interval(found.same_experts, percent),
            )
            for name, found in compared
        ),
    )


def _layers(compared: Sequence[tuple[str, Agreement]]) -> Grid:
    layers = sorted({layer for _, found in compared for layer in found.same_experts_by_layer})
    return Grid(
        title="Same experts by layer",
        columns=("layer", *(name for name, _ in compared)),
        rows=tuple(
            (
                str(layer),
                *(
                    percent(share) if (share := found.same_experts_by_layer.get(layer)) else ""
                    for _, found in compared
                ),
            )
            for layer in layers
        ),
    )


def _task(models: Sequence[ModelResult], name: str) -> Grid:
    scores = [(model.name, model.tasks[name]) for model in models if name in model.tasks]
    return Grid(
        title=f"{name}: {scores[0][1].items} items",
        columns=("model", "acc", "acc_norm", "acc_norm minus the reference's"),
        rows=tuple(
            (
                model,
                with_interval(score.acc, percent),
                with_interval(score.acc_norm, percent),
                with_interval(score.acc_norm_gain, percent) if score.acc_norm_gain else "",
            )
            for model, score in scores
        ),
    )


def _generation(models: Sequence[ModelResult]) -> Grid:
    scores = [(model.name, model.generation) for model in models if model.generation]
    first = scores[0][1]
    return Grid(
        title=f"{first.tokens} greedy tokens after each of {first.prompts} prompts",
        columns=("model", "mean tokens until one differs", "prompts without a difference"),
        rows=tuple(
            (name, f"{score.mean_same:.1f}", percent(score.identical)) for name, score in scores
        ),
    )


def _task_names(models: Sequence[ModelResult]) -> list[str]:
    return list(dict.fromkeys(name for model in models for name in model.tasks))


def with_interval(estimate: Estimate, form: Callable[[float], str]) -> str:
    """A figure and its interval: ``43.8 [40.0, 47.4]``."""
    if estimate.low is None or estimate.high is None:
        return form(estimate.value)
    return f"{form(estimate.value)} [{form(estimate.low)}, {form(estimate.high)}]"


def percent(share: float) -> str:
    """A share of 1 in percent."""
    return f"{share:.2%}"


def small(value: float) -> str:
    """A divergence: three digits, or that it is rounding only."""
    return f"{value:.3g}" if abs(value) >= _ROUNDING else "0"
