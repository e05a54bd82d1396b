"""``shoal eval``: how good models are on texts and tasks, and how close to a reference."""

from __future__ import annotations

import argparse

from shoal.graphs.model_forms import model_form
from shoal.runtime.atomic_file import atomic_file, check_place
from shoal.runtime.commands.checkpoints import fetch_checkpoint
from shoal.runtime.commands.option_values import machine_options
from shoal.runtime.console.progress import WorkProgress
from shoal.runtime.console.report import write_grid, write_json, write_lines
from shoal.runtime.evaluation.evaluate import evaluate
from shoal.runtime.evaluation.page import evaluation_page
from shoal.runtime.evaluation.results import Evaluation
from shoal.runtime.evaluation.table import grids, summary

_PAGE = "the page"


def eval_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal eval``."""
    for path, what in ((args.html, _PAGE), (args.save_reference, "the reference")):
        if path is not None:
            check_place(path, what)
    for name in (*args.models, args.reference):
        if name is not None and model_form(name) == "hub":
            fetch_checkpoint(name, args, what="evaluating a checkpoint")
    with WorkProgress("eval", "tokens") as progress:
        result = evaluate(
            args.models,
            texts=args.text,
            window=args.window,
            tokens=args.tokens,
            reference=args.reference,
            save_reference=args.save_reference,
            tasks=args.tasks,
            generate=args.generate,
            revision=args.revision,
            token=args.token,
            progress=progress,
            **machine_options(args),
        )
    if args.html is not None:
        with atomic_file(args.html, _PAGE) as file:
            file.write(evaluation_page(result).encode())
    if args.json:
        write_json(result.to_json())
    else:
        _write_report(result)
    return 0


def _write_report(result: Evaluation) -> None:
    write_lines([summary(result)])
    for grid in grids(result):
        write_lines([""])
        write_grid(grid.title, grid.columns, grid.rows)
