"""shoal::Route: from router logits to the experts of each token and their weights.

E experts in G groups, of which topk_group stay; K chosen experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.graphs.ops.spec import Attributes, OpSpec
from shoal.graphs.quantize import Floats

SCORING_FUNCS = ("softmax", "sigmoid")
TOPK_METHODS = ("greedy", "group_limited_greedy", "noaux_tc")


@dataclass(frozen=True, kw_only=True)
class RouteSettings:
    """Attributes of Route; the names are those of the Hugging Face config."""

    scoring_func: str  # one of SCORING_FUNCS
    topk_method: str  # one of TOPK_METHODS
    top_k: int  # K
    n_group: int  # G; 1: no groups
    topk_group: int  # groups that stay
    norm_topk_prob: int  # 1: weights are divided by their sum
    routed_scaling_factor: float

    def __post_init__(self) -> None:
        if self.scoring_func not in SCORING_FUNCS or self.topk_method not in TOPK_METHODS:
            raise ValueError(f"Route: no method {self.scoring_func}, {self.topk_method}")

    @property
    def is_biased(self) -> bool:
        """Whether a bias takes part in the choice."""
        return self.topk_method == "noaux_tc"

    @property
    def is_grouped(self) -> bool:
        """Whether groups of experts compete first."""
        return self.topk_method != "greedy" and self.topk_group < self.n_group


def route(
    logits: Floats, bias: Floats | None, settings: RouteSettings
) -> tuple[NDArray[np.int64], Floats]:
    """NumPy reference of Route.

    Args:
        logits: float32 [..,E].
        bias: float32 [E] exactly when topk_method is noaux_tc.
        settings: The attributes.

    Returns:
        expert_ids int64 [..,K], by falling selection score, ties to the lower id, and
        expert_weights float32 [..,K].

    Raises:
        ValueError: A bias without noaux_tc, or noaux_tc without one.
    """
    if (bias is None) == settings.is_biased:
        raise ValueError(f"Route: bias goes with noaux_tc only, not {settings.topk_method}")
    scores = _scores(logits, settings.scoring_func)
    choice = scores if bias is None else scores + bias
    if settings.is_grouped:
        choice = _keep_best_groups(choice, settings)
    ids = _top(choice, settings.top_k)
    # The bias takes part in the choice, never in the weights.
    weights = np.take_along_axis(choice if bias is None else scores, ids, axis=-1)
    if settings.norm_topk_prob:
        weights /= weights.sum(axis=-1, keepdims=True) + np.float32(1e-20)
    return ids, np.multiply(weights, settings.routed_scaling_factor, dtype=np.float32)


def _scores(logits: Floats, scoring_func: str) -> Floats:
    if scoring_func == "sigmoid":
        with np.errstate(over="ignore"):  # exp may reach inf; 1 / inf is the right 0
            scores: Floats = np.reciprocal(1 + np.exp(-logits))
        return scores
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Floats = exps / exps.sum(axis=-1, keepdims=True)
    return shares


def _top(values: Floats, count: int) -> NDArray[np.int64]:
    """Indices of the ``count`` largest along the last axis, ties to the lower index."""
    return np.argsort(-values, axis=-1, kind="stable")[..., :count]


def _keep_best_groups(choice: Floats, settings: RouteSettings) -> Floats:
    """``choice`` with every expert outside the best groups put out of the running."""
    grouped = choice.reshape(*choice.shape[:-1], settings.n_group, -1)
    if settings.is_biased:
        group_scores = np.sort(grouped, axis=-1)[..., -2:].sum(axis=-1)
    else:
        group_scores = grouped.max(axis=-1)
    kept = np.zeros(group_scores.shape, bool)
    np.put_along_axis(kept, _top(group_scores, settings.topk_group), True, axis=-1)
    return np.where(kept[..., None], grouped, _masked_score(settings)).reshape(choice.shape)


def _masked_score(settings: RouteSettings) -> np.float32:
    return np.float32(-np.inf if settings.is_biased else 0.0)


def route_body(attributes: Attributes) -> str:
    """ONNX text of Route for the given attributes, which all of a model's Route nodes share."""
    settings = route_settings(attributes)
    lines = [_SCORES[settings.scoring_func]]
    lines.append("open = " + ("Add (scores, bias)" if settings.is_biased else "Identity (scores)"))
    lines.append(_group_lines(settings) if settings.is_grouped else "choice = Identity (open)")
    lines.append(f"top_k = Constant <value_ints: ints = [{settings.top_k}]> ()")
    # TopK gives equal values in the order of their indices.
    lines.append("chosen, expert_ids = TopK <axis: int = -1> (choice, top_k)")
    weighed = "scores" if settings.is_biased else "choice"
    lines.append(f"raw = GatherElements <axis: int = -1> ({weighed}, expert_ids)")
    lines.append(_NORMALISED if settings.norm_topk_prob else "weights = Identity (raw)")
    lines.append(_SCALED)
    return "\n".join(lines)


def route_settings(attributes: Attributes) -> RouteSettings:
    """The attributes of a Route node as checked settings."""
    values: dict[str, Any] = {name: attributes[name] for name in ROUTE.attributes}
    return RouteSettings(**values)


_SCORES = {
    "softmax": "scores = Softmax <axis: int = -1> (logits)",
    # onnxruntime's Sigmoid gives 0 below -18 and so changes small weights; this is exact.
    "sigmoid": """
        negated = Neg (logits)
        exps = Exp (negated)
        unit = Constant <value_float: float = 1.0> ()
        denominators = Add (exps, unit)
        scores = Reciprocal (denominators)
    """,
}

_GROUP_SCORES = {
    "noaux_tc": """
        two = Constant <value_ints: ints = [2]> ()
        best_two, best_two_ids = TopK <axis: int = -1> (grouped, two)
        last = Constant <value_ints: ints = [-1]> ()
        group_scores = ReduceSum <keepdims: int = 0> (best_two, last)
    """,
    "group_limited_greedy": """
        last = Constant <value_ints: ints = [-1]> ()
        group_scores = ReduceMax <keepdims: int = 0> (grouped, last)
    """,
}

_NORMALISED = """
    last_axis = Constant <value_ints: ints = [-1]> ()
    sums = ReduceSum <keepdims: int = 1> (raw, last_axis)
    tiny = Constant <value_float: float = 1e-20> ()
    safe_sums = Add (sums, tiny)
    weights = Div (raw, safe_sums)
"""

_SCALED = """
    factor = Constant <value_float: float = @routed_scaling_factor> ()
    expert_weights = Mul (weights, factor)
"""


def _group_lines(settings: RouteSettings) -> str:
    """From the scores ``open`` [..,E] to ``choice``, where only the best groups still count."""
    return f"""
        shape = Shape (open)
        leading = Shape <end: int = -1> (open)
        by_group = Constant <value_ints: ints = [{settings.n_group}, -1]> ()
        grouped_shape = Concat <axis: int = 0> (leading, by_group)
        grouped = Reshape (open, grouped_shape)
        {_GROUP_SCORES[settings.topk_method]}
        topk_group = Constant <value_ints: ints = [{settings.topk_group}]> ()
        best_groups, group_ids = TopK <axis: int = -1> (group_scores, topk_group)
        n_group = Constant <value_int: int = {settings.n_group}> ()
        off_on = Constant <value_floats: floats = [0.0, 1.0]> ()
        hits = OneHot <axis: int = -1> (group_ids, n_group, off_on)
        before_last = Constant <value_ints: ints = [-2]> ()
        hit = ReduceMax <keepdims: int = 0> (hits, before_last)
        kept = Cast <to: int = 9> (hit)
        kept_column = Unsqueeze (kept, last)
        out = Constant <value_float: float = {_masked_score(settings)}> ()
        masked = Where (kept_column, grouped, out)
        choice = Reshape (masked, shape)
    """


ROUTE = OpSpec(
    name="Route",
    doc=(
        "Chooses top_k of E experts for each token. scores = softmax or sigmoid of the logits. "
        "greedy: the best scores. group_limited_greedy: only experts of the topk_group groups with "
        "the best single score, the others score 0. noaux_tc: chosen by scores + bias, among the "
        "topk_group groups with the best sum of two, the others score -inf; the weights are the "
        "scores without bias. norm_topk_prob: weights / (sum + 1e-20). Then times "
        "routed_scaling_factor. Ids come by falling selection score, ties to the lower id."
    ),
    source="DeepSeek-V2, arXiv 2405.04434, 2.2; DeepSeek-V3, arXiv 2412.19437, eq. 13-16",
    inputs={"logits": "f[..,E]", "bias": "f[E]"},
    outputs={"expert_ids": "i[..,K]", "expert_weights": "f[..,K]"},
    attributes={
        "scoring_func": "string",
        "topk_method": "string",
        "top_k": "int",
        "n_group": "int",
        "topk_group": "int",
        "norm_topk_prob": "int",
        "routed_scaling_factor": "float",
    },
    optional_inputs=("bias",),
    body=route_body,
)
