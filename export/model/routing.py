"""Which experts a token goes to, and how much each one counts.

Shapes: E experts, K chosen experts, G groups of experts; ".." any leading dimensions.

Source: DeepSeek-V2 (arXiv 2405.04434), section 2.2.2; DeepSeek-V3 (arXiv 2412.19437), section 2.1.2
and equations 12 to 16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.export.config.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class RoutingRule:
    """How scores become a choice; the attributes of shoal::Route."""

    scoring_func: str  # "softmax" or "sigmoid", of the logits
    topk_method: str  # "greedy", "group_limited_greedy" or "noaux_tc"
    top_k: int
    n_group: int
    topk_group: int  # groups that stay in the choice
    norm_topk_prob: bool  # make the weights of the chosen experts sum to 1
    routed_scaling_factor: float  # applied last

    @classmethod
    def of(cls, config: ModelConfig) -> RoutingRule:
        """The rule of a model."""
        return cls(
            scoring_func=config.scoring_func,
            topk_method=config.topk_method,
            top_k=config.num_experts_per_tok,
            n_group=config.n_group,
            topk_group=config.topk_group,
            norm_topk_prob=config.norm_topk_prob,
            routed_scaling_factor=config.routed_scaling_factor,
        )


def choose_experts(logits: Tensor, bias: Tensor | None, rule: RoutingRule) -> tuple[Tensor, Tensor]:
    """Choose ``rule.top_k`` experts for each token.

    Args:
        logits: float32 [.., E].
        bias: float32 [E]; it takes part in the choice, never in the weights.
        rule: How to choose.

    Returns:
        Expert ids int64 [.., K] by falling selection score, the lower id first among equals, and
        their weights float32 [.., K].
    """
    scores = logits.softmax(-1) if rule.scoring_func == "softmax" else logits.sigmoid()
    selection = scores if bias is None else scores + bias
    if rule.topk_method == "noaux_tc":
        selection = _mask_groups(selection, rule, best=2, masked=float("-inf"))
    elif rule.topk_method == "group_limited_greedy":
        scores = selection = _mask_groups(selection, rule, best=1, masked=0.0)
    ids = _top(selection, rule.top_k)
    weights = scores.gather(-1, ids)
    if rule.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids, weights * rule.routed_scaling_factor


def _mask_groups(selection: Tensor, rule: RoutingRule, *, best: int, masked: float) -> Tensor:
    """``selection`` [.., E], ``masked`` outside the groups whose ``best`` experts sum highest."""
    if rule.topk_group == rule.n_group:
        return selection
    size = selection.shape[-1] // rule.n_group
    grouped = selection.reshape(*selection.shape[:-1], rule.n_group, size)
    group_scores = grouped.sort(-1, descending=True).values[..., :best].sum(-1)
    kept = torch.zeros_like(group_scores, dtype=torch.bool)
    kept = kept.scatter(-1, _top(group_scores, rule.topk_group), True)
    return grouped.masked_fill(~kept[..., None], masked).reshape(selection.shape)


def _top(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest. A stable sort, because topk breaks ties as it likes."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
