"""What a bundle answers to a fixed text, kept in a folder for another machine to compare with.

M MoE layers   T tokens   K experts of a token   W vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.runtime import open_bundle
from shoal.runtime.model import Model

TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife. How"
)  # 35 tokens, as many as emulation reads in seconds; what follows it is clear for a dozen more
NEXT_TOKEN = 42  # read after the text, by a restored context
NUM_NEW_TOKENS = 12

FORMS = (("tiny-fp32", "portable"), ("tiny-int8", "portable"), ("tiny-int8", "native"))
"""Each bundle in each form that it has."""

PACK = "device.pack"
"""Bundle and wheels in one file."""

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one machine made of the text."""

    logits: Array  # float32 [T,W]
    experts: Array  # int64 [M,T,K], each token's in rising order
    greedy: Array  # int64: the tokens that follow
    margins: Array  # float32: by how much each of them led
    after: Array  # float32 [W]: logits after the saved context and one more token

    def save(self, path: Path) -> None:
        """Write all arrays to one file."""
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Answers:
        """Read what ``save`` wrote."""
        with np.load(path) as file:
            return cls(**file)


def open_form(bundles: Path, bundle: str, kernels: str) -> Model:
    """A bundle in one of its forms, on one thread."""
    return open_bundle(bundles / bundle, kernels=kernels, threads=1)  # type: ignore[arg-type]


def answer(model: Model, context_file: Path) -> Answers:
    """Read the text, continue it, and save the context that has read it."""
    ids = model.encode(TEXT)
    context = model.new_context()
    step = context.step(ids, logits="all", routing=True)
    context.save(context_file)
    assert step.routing is not None
    tokens, margins = continue_greedily(context, step.logits[-1])
    return Answers(
        logits=step.logits,
        experts=np.sort(step.routing.expert_ids, axis=-1),
        greedy=tokens,
        margins=margins,
        after=logits_after(model, context_file),
    )


def continue_greedily(context: Any, logits: Array) -> tuple[Array, Array]:
    """The top-1 token each time, and how far the second was behind."""
    tokens, margins = [], []
    for _ in range(NUM_NEW_TOKENS):
        second, first = np.sort(logits)[-2:]
        tokens.append(int(np.argmax(logits)))
        margins.append(first - second)
        logits = context.decode(tokens[-1])
    return np.array(tokens), np.array(margins, np.float32)


def logits_after(model: Model, context_file: Path) -> Array:
    """Logits of a restored context after one more token of the text."""
    context = model.load_context(context_file)
    return context.decode(NEXT_TOKEN)


def answers_file(folder: Path, bundle: str, kernels: str, cpu: str = "x86") -> Path:
    """Where the answers of a machine are kept."""
    return folder / f"{bundle}-{kernels}-{cpu}.npz"


def context_file(folder: Path, bundle: str, kernels: str, cpu: str = "x86") -> Path:
    """Where the context that a machine saved is kept."""
    return folder / f"{bundle}-{kernels}-{cpu}.ctx"


def write_answers(bundles: Path, folder: Path, cpu: str = "x86") -> None:
    """Let this machine answer with every form of every bundle."""
    for bundle, kernels in FORMS:
        model = open_form(bundles, bundle, kernels)
        found = answer(model, context_file(folder, bundle, kernels, cpu))
        found.save(answers_file(folder, bundle, kernels, cpu))


def mean_kl(expected: Array, found: Array) -> float:
    """Mean KL divergence of logits over all positions, in nats."""
    log_p = expected - np.logaddexp.reduce(expected, axis=-1, keepdims=True)
    log_q = found - np.logaddexp.reduce(found, axis=-1, keepdims=True)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())


def differences(folder: Path, cpu: str) -> list[str]:
    """How far a processor's logits are from those of x86 and of the float32 model there, a form a
    line.
    """
    floats = Answers.load(answers_file(folder, *FORMS[0])).logits
    lines = []
    for form in FORMS:
        here, there = (
            Answers.load(answers_file(folder, *form, name)).logits for name in ("x86", cpu)
        )
        lines.append(
            f"{cpu} {'-'.join(form)}: largest difference of a logit from x86 "
            f"{np.abs(there - here).max():.1e}, mean KL divergence from x86 "
            f"{mean_kl(here, there):.1e}, from float32 {mean_kl(floats, there):.1e}"
        )
    return lines
