"""Who takes part in an evaluation: open models, and the reference they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from shoal.graphs.errors import InputError
from shoal.graphs.model_forms import model_form
from shoal.runtime.evaluation.stored_reference import StoredReference
from shoal.runtime.evaluation.subjects import (
    Subject,
    config_sha256,
    open_subject,
    shared_tokenizer,
)
from shoal.runtime.evaluation.windows import Windows
from shoal.runtime.model import Model
from shoal.runtime.text.tokenizer import Tokenizer

ModelOrPath = Model | str | Path


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The models of an evaluation and what they are compared with."""

    subjects: list[Subject]  # the reference first, if it is one of them
    names: list[str]
    stored: StoredReference | None
    tokenizer: Tokenizer
    tokenizer_sha256: str

    @property
    def compared(self) -> list[int]:
        """Indices of the models that are compared with the reference."""
        return list(range(0 if self.stored else 1, len(self.subjects)))

    @property
    def reference_name(self) -> str | None:
        """Name of what they are compared with, if any is."""
        if self.stored is not None:
            return self.stored_name
        return self.names[0] if self.compared else None

    @property
    def stored_name(self) -> str:
        """What the stored reference is called."""
        assert self.stored is not None, "only a stored reference has a name of its own"
        return f"{self.stored.header.model['name']} (stored)"

    @property
    def max_length(self) -> int:
        """Tokens that all models can read."""
        return min(subject.max_length for subject in self.subjects)

    def check_window(self, length: int) -> None:
        """Refuse windows that a model cannot read or that have nothing to predict."""
        if not 2 <= length <= self.max_length:
            raise InputError(
                f"window: expected 2 to {self.max_length} tokens, which all models can read, "
                f"found {length}"
            )

    def check_stored(self, windows: Windows) -> None:
        """Refuse a stored reference that belongs to something else."""
        if self.stored is None:
            return
        advice = {
            "tokenizer": "store one with this tokenizer",
            "text": "give the --text, --window and --tokens it was stored with",
        }
        digests = {"tokenizer": self.tokenizer_sha256, "text": windows.sha256}
        self.stored.require({kind: (digests[kind], advice[kind]) for kind in advice})
        for subject in self.subjects:
            other = f"{subject.name} is made from another config.json than the reference"
            self.stored.require({"model": (config_sha256(subject), other)})
            self.stored.require_sizes(
                [len(window.ids) for window in windows.windows],
                subject.vocab_size,
                subject.moe_layers,
                subject.num_experts_per_tok,
            )


def open_contest(
    models: Sequence[ModelOrPath],
    reference: ModelOrPath | None,
    *,
    revision: str | None = None,
    token: str | None = None,
    **open_options: Any,
) -> Contest:
    """Open the models; see ``evaluate`` for the arguments.

    Raises:
        ShoalError: one cannot be opened, or they have different tokenizers.
    """
    stored = None
    entrants = list(models)
    if reference is not None and _is_stored(reference):
        stored = StoredReference(Path(reference))
    elif reference is not None:
        # The reference comes first, whether or not it was named among the models.
        entrants = [reference, *(m for m in entrants if _place(m) != _place(reference))]
    if not entrants:
        raise InputError("evaluate: expected a bundle or a checkpoint, found none; name one")
    on_hub = [_is_on_hub(model) for model in entrants]
    if revision is not None and not any(on_hub):
        raise InputError(
            "revision: expected ORG/NAME on the Hugging Face Hub among the models, found none; "
            "leave it out or check the names"
        )
    subjects = [
        open_subject(model, revision=revision if is_hub else None, token=token, **open_options)
        for model, is_hub in zip(entrants, on_hub, strict=True)
    ]
    tokenizer, digest = shared_tokenizer(subjects)
    return Contest(
        subjects=subjects,
        names=_names(subjects),
        stored=stored,
        tokenizer=tokenizer,
        tokenizer_sha256=digest,
    )


def _is_stored(reference: ModelOrPath) -> TypeGuard[str | Path]:
    """Whether a file that ``save_reference`` wrote is meant; checkpoints can be files, too."""
    if isinstance(reference, Model):
        return False
    return Path(reference).is_file() and model_form(reference) is None


def _is_on_hub(model: ModelOrPath) -> bool:
    return not isinstance(model, Model) and model_form(model) == "hub"


def _place(model: ModelOrPath) -> Path:
    return (model.bundle.folder if isinstance(model, Model) else Path(model)).resolve()


def _names(subjects: Sequence[Subject]) -> list[str]:
    """The last parts of the names, or all of them where that is not enough to tell models apart."""
    names = [Path(subject.name).resolve().name for subject in subjects]
    paths = [subject.name for subject in subjects]
    return names if len(set(names)) == len(names) else paths
