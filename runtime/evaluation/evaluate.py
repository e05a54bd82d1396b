"""Evaluate models on the same texts and tasks: the order of things.

All models are open at once and read each window in turn, and logits are computed for a few
positions at a time: nothing grows with the text but some 12 bytes for each token and model. Models
that do not fit in memory together are evaluated one by one against a stored reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from shoal.graphs.errors import InputError
from shoal.runtime.evaluation.bootstrap import Bootstrap
from shoal.runtime.evaluation.choices import (
    ChoiceLog,
    ChoiceTask,
    encode_item,
    judge,
    log_likelihood,
    read_task,
    task_score,
)
from shoal.runtime.evaluation.contest import Contest, ModelOrPath, open_contest
from shoal.runtime.evaluation.defaults import DEFAULT_WINDOW
from shoal.runtime.evaluation.generation import (
    Continuation,
    generation_score,
    prompts_of,
    stored_continuations,
)
from shoal.runtime.evaluation.reference_file import ReferenceWriter, writing_reference
from shoal.runtime.evaluation.reference_header import ReferenceHeader
from shoal.runtime.evaluation.results import Evaluation, GenerationScore, ModelResult, TaskScore
from shoal.runtime.evaluation.subjects import config_sha256
from shoal.runtime.evaluation.window_pass import WindowPass
from shoal.runtime.evaluation.windows import Windows, cut_windows

Progress = Callable[[int, int, str], None]
"""Called with tokens read, tokens in all, and what is being done."""


def evaluate(
    models: Sequence[ModelOrPath],
    *,
    texts: Sequence[str | Path] = (),
    window: int = DEFAULT_WINDOW,
    tokens: int | None = None,
    reference: ModelOrPath | None = None,
    save_reference: str | Path | None = None,
    tasks: Sequence[str | Path] = (),
    generate: int = 0,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress = lambda done, total, what: None,
    **open_options: Any,
) -> Evaluation:
    """Measure how good models are on texts and tasks, and how close to a reference.

    Args:
        models: open models, bundle folders or, with the export extra, checkpoints, each of which is
            a Hugging Face folder (config.json and *.safetensors), a .gguf file, or ORG/NAME on the
            Hugging Face Hub.
        texts: UTF-8 files, plain or .jsonl with a "text" in each line, and either may be compressed
            as .xz or .gz; none for the text that comes with shoal.
        window: tokens of a window; each is read from an empty context.
        tokens: read at most this many tokens of text.
        reference: what the others are compared with: one of ``models``, a further one, or a file
            that ``save_reference`` wrote. None takes the first of several models.
        save_reference: file to store what the reference predicts.
        tasks: files of multiple-choice items in HellaSwag's format.
        generate: greedy tokens to compare after the beginnings of the first windows; 0 for none.
        revision: branch, tag or commit of the checkpoints on the hub; None for the main branch.
        token: for the hub; None for HF_TOKEN or a login, if there is one.
        progress: called with tokens read, tokens in all and what is being done.
        open_options: of ``open_bundle``, for bundles given as folders; ``threads`` also applies to
            checkpoints.

    Raises:
        ShoalError: a model, text, task or reference cannot be read, or they do not fit together.
    """
    contest = open_contest(models, reference, revision=revision, token=token, **open_options)
    contest.check_window(window)
    cut = cut_windows([Path(text) for text in texts], contest.tokenizer, window, tokens)
    contest.check_stored(cut)
    run = _Run(contest, cut, [read_task(Path(task)) for task in tasks], progress)
    continuations = run.continuations(generate, keep=save_reference is not None)
    with _writer(contest, cut, save_reference, continuations) as writer:
        text_pass = run.read_text(writer)
    return run.result(text_pass, run.answer_tasks(), run.compare_generations(continuations))


class _Run:
    """The work, and how far it has come."""

    def __init__(
        self, contest: Contest, windows: Windows, tasks: Sequence[ChoiceTask], progress: Progress
    ) -> None:
        self._contest = contest
        self._windows = windows
        self._tasks = tasks
        self._encoded = [
            [encode_item(item, contest.tokenizer, contest.max_length) for item in task.items]
            for task in tasks
        ]
        self._progress = progress
        in_tasks = sum(len(ids) for task in self._encoded for item in task for ids, _ in item)
        self._total = len(contest.subjects) * (windows.num_tokens + in_tasks)
        self._done = 0

    def continuations(self, count: int, *, keep: bool) -> list[Continuation]:
        """What the reference writes after the prompts."""
        contest = self._contest
        if count == 0:
            return []
        prompts = prompts_of(self._windows, count, contest.max_length)
        if contest.stored is not None:
            return stored_continuations(contest.stored, prompts, count)
        if not contest.compared and not keep:
            raise InputError("generate: expected a second model to compare with; name one")
        return [(ids, contest.subjects[0].continue_greedily(ids, count)) for ids in prompts]

    def read_text(self, writer: ReferenceWriter | None) -> WindowPass:
        """Read the windows with all models."""
        contest = self._contest
        text_pass = WindowPass(contest.subjects, contest.stored, writer, self._advance)
        text_pass.run(self._windows)
        return text_pass

    def answer_tasks(self) -> list[dict[str, TaskScore]]:
        """Each model's scores by task."""
        contest = self._contest
        scores: list[dict[str, TaskScore]] = [{} for _ in contest.subjects]
        for task, encoded in zip(self._tasks, self._encoded, strict=True):
            logs: list[ChoiceLog] = []
            for index, subject in enumerate(contest.subjects):
                found = []
                for item in encoded:
                    found.append([log_likelihood(subject, ending) for ending in item])
                    self._advance(sum(len(ids) for ids, _ in item), index)
                logs.append(judge(task, found))
            for index, log in enumerate(logs):
                has_reference = contest.stored is None and index in contest.compared
                scores[index][task.name] = task_score(log, logs[0] if has_reference else None)
        return scores

    def compare_generations(
        self, continuations: Sequence[Continuation]
    ) -> list[GenerationScore | None]:
        """How long each model writes what the reference writes."""
        contest = self._contest
        scores: list[GenerationScore | None] = [None] * len(contest.subjects)
        for index in contest.compared if continuations else ():
            scores[index] = generation_score(contest.subjects[index], continuations)
        return scores

    def result(
        self,
        text_pass: WindowPass,
        tasks: Sequence[dict[str, TaskScore]],
        generations: Sequence[GenerationScore | None],
    ) -> Evaluation:
        """Everything that was found."""
        contest, windows = self._contest, self._windows
        bootstrap = Bootstrap(len(windows.windows))
        results = []
        if contest.stored is not None:
            scores = text_pass.reference_scores
            results.append(
                ModelResult(
                    name=contest.stored_name,
                    weights=contest.stored.header.model["weights"],
                    perplexity=scores.perplexity(windows, bootstrap),
                    bits_per_byte=scores.bits_per_byte(windows, bootstrap),
                )
            )
        for index, subject in enumerate(contest.subjects):
            scores, agreement = text_pass.scores[index], None
            if index in contest.compared:
                agreement = scores.agreement(
                    text_pass.reference_scores, windows, subject.moe_layers, bootstrap
                )
            results.append(
                ModelResult(
                    name=contest.names[index],
                    weights=subject.weights,
                    weight_bytes=subject.weight_bytes,
                    bits_per_weight=8 * subject.weight_bytes / subject.num_parameters,
                    perplexity=scores.perplexity(windows, bootstrap),
                    bits_per_byte=scores.bits_per_byte(windows, bootstrap),
                    agreement=agreement,
                    tasks=tasks[index],
                    generation=generations[index],
                )
            )
        return Evaluation(
            texts=windows.texts,
            tokens=windows.num_tokens,
            window=windows.length,
            windows=len(windows.windows),
            reference=contest.reference_name,
            models=tuple(results),
        )

    def _advance(self, count: int, index: int) -> None:
        self._done += count
        self._progress(self._done, self._total, self._contest.names[index])


@contextlib.contextmanager
def _writer(
    contest: Contest,
    windows: Windows,
    path: str | Path | None,
    continuations: Sequence[Continuation],
) -> Iterator[ReferenceWriter | None]:
    if path is None:
        yield None
        return
    if contest.stored is not None:
        raise InputError(
            f"{path}: expected a model as the reference to save, found a stored one; leave one out"
        )
    subject = contest.subjects[0]
    model = {"name": contest.names[0], "weights": subject.weights}
    header = ReferenceHeader(
        model=model | {"sha256": config_sha256(subject)},
        tokenizer=contest.tokenizer_sha256,
        text={"sha256": windows.sha256, "names": windows.texts},
        vocab_size=subject.vocab_size,
        moe_layers=subject.moe_layers,
        num_experts_per_tok=subject.num_experts_per_tok,
        windows=tuple(len(window.ids) for window in windows.windows),
        continuations=tuple(tokens for _, tokens in continuations),
    )
    with writing_reference(Path(path), header) as writer:
        yield writer
