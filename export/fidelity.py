"""How faithful the quantized model is: float32 and int8 side by side on a text.

The figures (all over the same positions of the same text):

    kl_mean, kl_p999, kl_max   KL(P_float || P_int8) of the next-token distributions, in nats
    perplexity, perplexity_reference   exp of the mean negative log-likelihood of the text
    top1_agreement             share of positions where both models prefer the same token
    router_agreement           share of the chosen experts that both models choose, with one
                               figure for each MoE layer beside the mean
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from shoal.export.streams import Stream
from shoal.graphs.errors import CheckpointError, ExportError

WINDOW = 512
"""Tokens of context each position may see at most; long texts are cut into windows of this."""

_ROWS = 64


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

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, rounded to what is meaningful."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def fidelity_windows(
    tokenizer: Path, text: Path | None, num_tokens: int, *, window: int = WINDOW
) -> tuple[str, Tensor]:
    """Tokenize the fidelity text.

    Args:
        tokenizer: a tokenizer.json.
        text: a UTF-8 text file; None takes the text shipped with shoal.
        num_tokens: how many tokens to use at most.
        window: longest window.

    Returns:
        The text's name and int64 [B,T] windows.

    Raises:
        CheckpointError: the tokenizer cannot be read.
        ExportError: the text cannot be read or is too short.
    """
    name = "shipped" if text is None else text.name
    try:
        source = files("shoal.export") / "data" / "fidelity.txt" if text is None else text
        content = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ExportError(
            f"{text}: cannot be read as UTF-8 text ({reason}); choose another --fidelity-text"
        ) from error
    encoder = _read_tokenizer(tokenizer)
    ids = encoder.encode(content, add_special_tokens=False).ids
    prefix = encoder.encode("", add_special_tokens=True).ids[:1]  # the begin token, if it has one
    step = min(window, num_tokens, len(ids) + len(prefix)) - len(prefix)
    count = min(num_tokens, len(ids)) // step if step > 1 else 0
    if count < 1:
        raise ExportError(
            f"{name}: {min(num_tokens, len(ids))} tokens are too few to measure fidelity on; "
            "choose a longer --fidelity-text or more --fidelity-tokens"
        )
    windows = [prefix + ids[i * step : (i + 1) * step] for i in range(count)]
    return name, torch.tensor(windows, dtype=torch.int64)


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise CheckpointError(
            f"{path}: the tokenizers library cannot read it ({error}); download it again"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two models at the end of the text.

    Attributes:
        stream: for its routing.
        head_input: [B*T,D].
        head: [W,D].
    """

    stream: Stream
    head_input: Tensor
    head: Tensor

    def log_probabilities(self, rows: Tensor) -> Tensor:
        """Of the next token after the positions ``rows``, float64 [rows,W]."""
        return (self.head_input[rows] @ self.head.T).double().log_softmax(-1)


def compare(text: str, ids_BT: Tensor, reference: Side, served: Side) -> Fidelity:
    """Sum up what both models make of the text.

    Args:
        text: name of the text.
        ids_BT: its windows.
        reference: the float32 model.
        served: the model as its weights are stored.
    """
    kl, nll_reference, nll, same = _compare_rows(ids_BT, reference, served)
    routing = tuple(
        _shared_experts(a, b)
        for a, b in zip(reference.stream.expert_ids, served.stream.expert_ids, strict=True)
    )
    return Fidelity(
        text=text,
        tokens=ids_BT.numel(),
        window=ids_BT.shape[1],
        kl_mean=float(kl.mean()),
        kl_p999=float(np.quantile(kl, 0.999)),
        kl_max=float(kl.max()),
        perplexity=float(np.exp(nll.mean())),
        perplexity_reference=float(np.exp(nll_reference.mean())),
        top1_agreement=float(same.mean()),
        router_agreement=float(np.mean(routing)) if routing else None,
        router_agreement_by_layer=routing,
    )


def _compare_rows(ids_BT: Tensor, reference: Side, served: Side) -> tuple[NDArray[np.float64], ...]:
    """KL, both negative log-likelihoods (not for each window's last token) and top-1 equality."""
    b, t = ids_BT.shape
    has_next = (torch.arange(b * t) % t) != t - 1
    next_ids = ids_BT.flatten().roll(-1)
    kl, nll_reference, nll, same = [], [], [], []
    for start in range(0, b * t, _ROWS):  # logits of the whole text may not fit
        rows = torch.arange(start, min(start + _ROWS, b * t))
        p, q = reference.log_probabilities(rows), served.log_probabilities(rows)
        kl.append((p.exp() * (p - q)).sum(-1))
        target = next_ids[rows, None]
        keep = has_next[rows]
        nll_reference.append(-p.gather(-1, target)[keep, 0])
        nll.append(-q.gather(-1, target)[keep, 0])
        same.append((p.argmax(-1) == q.argmax(-1)).double())
    return tuple(torch.cat(part).numpy() for part in (kl, nll_reference, nll, same))


def _shared_experts(a_BTK: Tensor, b_BTK: Tensor) -> float:
    """Share of the experts chosen by ``a`` that ``b`` chose too."""
    return float((a_BTK[..., :, None] == b_BTK[..., None, :]).any(-1).double().mean())
