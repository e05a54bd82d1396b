"""How faithful the quantized model is: float32 and int8 side by side on a text.

The figures (all over the same positions of the same text):

    kl_mean, kl_p999, kl_max   KL(P_float || P_int8) of the next-token distributions, in nats
    perplexity, perplexity_reference   exp of the mean negative log-likelihood of the text
    top1_agreement             share of positions where both models prefer the same token
    router_agreement           share of the chosen experts that both models choose, with one
                               figure for each MoE layer beside the mean
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LOGITS_AT_A_TIME = 1 << 19  # 4 MiB as float64


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Measured agreement of the quantized model with the float32 reference."""

    text: str  # where the text comes from
    tokens: int
    window: int
    kl_mean: float  # nats
    kl_p999: float  # nats
    kl_max: float  # nats
    perplexity: float
    perplexity_reference: float
    top1_agreement: float  # 0..1
    router_agreement: float | None  # 0..1; None without MoE layers
    router_agreement_by_layer: tuple[float, ...]
    calibration: dict[str, Any] | None = None  # "text" and "tokens" that rounding was improved by

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, rounded to what is meaningful."""
        record = {key: _rounded(value) for key, value in asdict(self).items()}
        if self.calibration is None:
            del record["calibration"]
        return record


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


class HeadComparison:
    """Next-token distributions of both models, built up a range of the vocabulary at a time.

    The logits of a text for a whole vocabulary would take gigabytes. They are made for some
    positions at a time, and for each position only sums over the tokens seen so far are kept,
    relative to the largest logit so far.
    """

    def __init__(self, ids_BT: Tensor, reference_ND: Tensor, served_ND: Tensor) -> None:
        """Begin.

        Args:
            ids_BT: the text.
            reference_ND: what the float32 model applies its head to, N = B T.
            served_ND: what the model as it is stored applies its head to.
        """
        self._ids_BT = ids_BT
        self._next_ids = ids_BT.flatten().roll(-1)
        self._sides = (_HeadSide(reference_ND), _HeadSide(served_ND))
        # Sum of exp(a - largest a) (a - b), of reference logits a and served ones b.
        self._gap = torch.zeros(len(reference_ND), dtype=torch.float64)

    def add(self, start: int, rows: Tensor, served_rows: Tensor) -> None:
        """Take the head's rows [..,D] from token ``start`` on, as float32 and as served."""
        reference, served = self._sides
        step = max(1, _LOGITS_AT_A_TIME // len(rows))
        for first in range(0, len(self._next_ids), step):
            part = slice(first, first + step)
            a, b = reference.logits(part, rows), served.logits(part, served_rows)
            shrink = reference.add(part, start, a, self._next_ids[part])
            served.add(part, start, b, self._next_ids[part])
            shares = (a - reference.largest[part, None]).exp()
            self._gap[part] = self._gap[part] * shrink + (shares * (a - b)).sum(-1)

    def finish(self, text: str, expert_ids: Sequence[Tensor]) -> Fidelity:
        """Sum up what both models make of the text.

        Args:
            text: its name.
            expert_ids: [2B,T,K] for each layer with experts, the reference's half first.
        """
        reference, served = self._sides
        kl = self._gap / reference.total - reference.log_total + served.log_total
        t = self._ids_BT.shape[1]
        has_next = (torch.arange(self._ids_BT.numel()) % t) != t - 1
        nll_reference, nll = ((s.log_total - s.target)[has_next].mean() for s in self._sides)
        routing = tuple(_shared_experts(*ids.chunk(2)) for ids in expert_ids)
        return Fidelity(
            text=text,
            tokens=self._ids_BT.numel(),
            window=t,
            kl_mean=float(kl.mean()),
            kl_p999=float(np.quantile(kl.numpy(), 0.999)),
            kl_max=float(kl.max()),
            perplexity=float(nll.exp()),
            perplexity_reference=float(nll_reference.exp()),
            top1_agreement=float((reference.best == served.best).double().mean()),
            router_agreement=float(np.mean(routing)) if routing else None,
            router_agreement_by_layer=routing,
        )


class _HeadSide:
    """One model's logits of N positions, summed over the tokens seen so far; all float64 [N].

    Attributes:
        largest: The largest logit.
        best: Which token has it.
        total: Sum of exp(logit - largest).
        target: The logit of the token that follows.
    """

    def __init__(self, input_ND: Tensor) -> None:
        count = len(input_ND)
        self._input_ND = input_ND
        self.largest = torch.full((count,), -math.inf, dtype=torch.float64)
        self.best = torch.zeros(count, dtype=torch.int64)
        self.total = torch.zeros(count, dtype=torch.float64)
        self.target = torch.zeros(count, dtype=torch.float64)

    @property
    def log_total(self) -> Tensor:
        """Logarithm of the sum of exp(logit)."""
        return self.largest + self.total.log()

    def logits(self, part: slice, rows: Tensor) -> Tensor:
        """Of some positions, for the tokens whose head rows these are."""
        return (self._input_ND[part] @ rows.T).double()

    def add(self, part: slice, start: int, logits: Tensor, next_ids: Tensor) -> Tensor:
        """Take the logits of some positions from token ``start`` on.

        Returns the factor of sums made before.
        """
        largest, best = logits.max(-1)
        is_new = largest > self.largest[part]
        self.best[part] = torch.where(is_new, best + start, self.best[part])
        largest = torch.maximum(largest, self.largest[part])
        shrink = (self.largest[part] - largest).exp()
        self.total[part] = self.total[part] * shrink + (logits - largest[:, None]).exp().sum(-1)
        self.largest[part] = largest
        here = (next_ids >= start) & (next_ids < start + logits.shape[1])
        self.target[part][here] = logits[here, next_ids[here] - start]
        return shrink


def _shared_experts(a_BTK: Tensor, b_BTK: Tensor) -> float:
    """Share of the experts chosen by ``a`` that ``b`` chose too."""
    return float((a_BTK[..., :, None] == b_BTK[..., None, :]).any(-1).double().mean())
