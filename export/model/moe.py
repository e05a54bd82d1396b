"""Mixture of experts: a router, many small experts of which a token uses a few, and shared ones.

Shapes: D hidden, E experts, K chosen experts, F expert width; ".." any leading dimensions.

Source: DeepSeekMoE (arXiv 2401.06066), section 3; DeepSeek-V3 (arXiv 2412.19437), section 2.1.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.export.config.model_config import ModelConfig
from shoal.export.model import ops
from shoal.export.model.layers import RMSNorm, SwiGLU
from shoal.export.model.routing import RoutingRule


class Router(nn.Module):
    """Scores every expert for a token and chooses the best. Stays float32 in every bundle.

    Attributes:
        weight: [E,D], E including zero experts.
        e_score_correction_bias: [E], shifts the choice to balance the experts' load, never the
            weights; None for models that do without.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rule = RoutingRule.of(config)
        choices = config.n_routed_experts + config.num_zero_experts
        self.weight = nn.Parameter(torch.empty(choices, config.hidden_size))
        self.e_score_correction_bias = (
            nn.Parameter(torch.empty(choices)) if config.topk_method == "noaux_tc" else None
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Expert ids int64 [.., K] and weights [.., K] for ``x`` [.., D]."""
        logits = functional.linear(x, self.weight)
        return ops.route(logits, self.e_score_correction_bias, self.rule)


class SparseExperts(nn.Module):
    """All routed experts of a layer.

    Attributes:
        gate_up: [E,2F,D], rows gate0, up0, gate1, up1, ..
        down: [E,D,F].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, width = config.n_routed_experts, config.moe_intermediate_size
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, config.hidden_size))
        self.down = nn.Parameter(torch.empty(experts, config.hidden_size, width))

    def forward(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """Weighted sum over the chosen experts, [.., D]; id E means no expert."""
        return ops.sparse_experts(x, expert_ids, expert_weights, self.gate_up, self.down)


class MoE(nn.Module):
    """The feed-forward part of a layer with experts: routed ones and those every token uses.

    Ids from the number of routed experts on are zero experts, which give their input back.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = SparseExperts(config)
        self.num_experts = config.n_routed_experts
        self.has_zero_experts = config.num_zero_experts > 0
        width = config.n_shared_experts * config.moe_intermediate_size
        # Shared experts are summed with weight 1 and so are one network of their joint width.
        self.shared_experts = SwiGLU(config.hidden_size, width) if width else None
        self.post_mlp_layernorm = (
            RMSNorm(config.hidden_size, config.rms_norm_eps) if config.has_moe_output_norm else None
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output [.., D], expert ids [.., K] and expert weights [.., K] for ``x`` [.., D]."""
        expert_ids, expert_weights = self.route(x)
        routed = expert_ids.clamp(max=self.num_experts) if self.has_zero_experts else expert_ids
        y = self.experts(x, routed, expert_weights)
        beside = self.beside(x, expert_ids, expert_weights)
        if beside is not None:
            y = y + beside
        return self.output_norm(y), expert_ids, expert_weights

    def output_norm(self, y: Tensor) -> Tensor:
        """What becomes of the sum over all experts [.., D] before it leaves the layer."""
        if self.post_mlp_layernorm is None:
            return y
        normalised: Tensor = self.post_mlp_layernorm(y)
        return normalised

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Expert ids int64 [.., K] and weights [.., K] for ``x`` [.., D]."""
        ids, weights = self.gate(x)
        return ids, weights

    def beside(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor | None:
        """What is added to the routed experts' sum: shared and zero experts, [.., D]."""
        y: Tensor | None = None if self.shared_experts is None else self.shared_experts(x)
        if not self.has_zero_experts:
            return y
        is_zero = expert_ids >= self.num_experts
        share = torch.where(is_zero, expert_weights, 0.0).sum(-1, keepdim=True)
        return share * x if y is None else y + share * x
