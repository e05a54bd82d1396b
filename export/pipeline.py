"""Export: from a checkpoint to a bundle folder.

open the checkpoint -> match tensor names -> build graphs -> write graphs -> stream weights (and
measure fidelity) -> check -> write the manifest -> rename into place
"""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import Tensor

from shoal.export.bundle_manifest import build_manifest
from shoal.export.checkpoint.open_checkpoint import open_checkpoint
from shoal.export.fidelity.head_comparison import Fidelity
from shoal.export.fidelity.measured_pass import move_and_measure
from shoal.export.fidelity.text import TextChoice
from shoal.export.peak_memory import peak_memory_bytes
from shoal.export.plan import ExportModel, open_model, small_files, used_formats
from shoal.export.tracing.assemble import Graphs
from shoal.export.transfer import Note, open_transfer
from shoal.export.writing.folder import check_place, check_target, replaced_folder, writing
from shoal.export.writing.journal import Journal, ResumePoint, fingerprint
from shoal.export.writing.sinks import CompareSink, FileSink, Progress
from shoal.graphs.contract import GRAPH_FILES, MANIFEST_FILE, WEIGHTS_FILE
from shoal.graphs.errors import BundleError, ExportError
from shoal.graphs.fidelity import DEFAULT_CALIBRATE_TOKENS, DEFAULT_FIDELITY_TOKENS
from shoal.graphs.manifest import FileInfo, Manifest
from shoal.graphs.manifest_reader import read_manifest
from shoal.graphs.recipes import DEFAULT_RECIPE, Recipe, choose_recipe


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export did.

    Attributes:
        bundle: folder of the bundle.
        manifest: its manifest, with the fidelity that was measured.
        seconds: wall-clock time of the export.
        peak_memory_bytes: largest resident memory that the process has had.
    """

    bundle: Path
    manifest: Manifest
    seconds: float
    peak_memory_bytes: int


def export_bundle(
    checkpoint: str | Path,
    bundle: str | Path,
    *,
    weights: str = DEFAULT_RECIPE,
    block_size: int | None = None,
    force: bool = False,
    resume: bool = False,
    fidelity: bool = True,
    fidelity_text: str | Path | None = None,
    fidelity_tokens: int = DEFAULT_FIDELITY_TOKENS,
    calibrate: str | Path | None = None,
    calibrate_tokens: int = DEFAULT_CALIBRATE_TOKENS,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress = lambda done, total, what: None,
) -> ExportReport:
    """Export a checkpoint to a bundle.

    Args:
        checkpoint: a Hugging Face folder (config.json and *.safetensors), a .gguf file, or ORG/NAME
            on the Hugging Face Hub.
        bundle: folder to make; it appears complete or not at all.
        weights: recipe that says how weights are stored: "int8", "int8-accurate", "int4-experts" or
            "fp32" (docs/accuracy.md).
        block_size: number of 8-bit weights that share a scale, 16 to 256; None for the recipe's.
        force: replace an existing bundle.
        resume: continue a stopped export; the bundle is that of an uninterrupted one.
        fidelity: measure how far the bundle is from the float32 model, while weights pass by.
        fidelity_text: UTF-8 file to measure on; None for the text that comes with shoal.
        fidelity_tokens: tokens of that text to use at most.
        calibrate: UTF-8 file on which errors of 4-bit weights are kept small.
        calibrate_tokens: tokens of that text to use at most.
        revision: branch, tag or commit of a checkpoint on the hub; None for the main branch.
        token: for the hub; None for HF_TOKEN or a login, if there is one.
        progress: called with bytes written, bytes in all and a tensor's name.

    Raises:
        ConfigError: the architecture or a config key is not supported.
        CheckpointError: the checkpoint is incomplete or damaged.
        ExportError: the bundle cannot be written.
        InputError: a revision was given for a checkpoint that is not on the hub.
    """
    start = time.monotonic()
    bundle = Path(bundle)
    recipe = choose_recipe(weights, block_size)
    choice = TextChoice(
        wanted=fidelity,
        path=None if fidelity_text is None else Path(fidelity_text),
        num_tokens=fidelity_tokens,
        calibrate=None if calibrate is None else Path(calibrate),
        calibrate_tokens=calibrate_tokens,
    )
    check_target(bundle.absolute(), force)
    check_place(bundle)  # before anything is fetched
    opened = open_checkpoint(checkpoint, revision=revision, token=token)
    with replaced_folder(bundle, force=force, keep=resume) as work:
        model = open_model(opened, recipe, choice)
        files, measured = _write_files(bundle, work, model, resume, progress)
        _check_graphs(work, model.graphs)
        manifest = _manifest(model, weights, recipe, files, measured)
        _write_manifest(manifest, work, bundle)
    return ExportReport(
        bundle=bundle,
        manifest=manifest,
        seconds=time.monotonic() - start,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _write_files(
    bundle: Path,
    work: Path,
    model: ExportModel,
    resume: bool,
    progress: Progress,
) -> tuple[dict[str, FileInfo], Fidelity | None]:
    """Everything of the bundle but its manifest, from where a journal says."""
    plan, text = model.graphs.plan, model.text
    texts = () if text is None else text.parts
    journal = Journal(
        work,
        fingerprint(
            model.checkpoint.tensors,
            model.checkpoint.raw_config,
            plan,
            model.graphs.formats,
            texts,
        ),
    )
    point = journal.read() if resume else None
    position = 0 if point is None else point.position
    _check_space(bundle, work, plan.total_bytes - position)
    files = _write_small_files(bundle, model, work)
    sink = FileSink(work, bundle, plan, progress, point)

    def note(streams: dict[str, Tensor]) -> None:
        # A killed process leaves behind what it has written. Only against a machine that goes down
        # must it be on disk: after every layer for those who resume, else once, at the end.
        position, sha256 = sink.reached(sync=resume)
        with writing(bundle):
            journal.write(
                ResumePoint(position=position, sha256=sha256, streams=streams), sync=resume
            )

    try:
        measured = move_weights(model, sink, point, note)
        files[WEIGHTS_FILE] = sink.finish()
    finally:
        sink.close()
    journal.remove()
    return files, measured


def move_weights(
    model: ExportModel,
    sink: FileSink | CompareSink,
    resume: ResumePoint | None = None,
    note: Note = lambda passed: None,
) -> Fidelity | None:
    """Move all weights of ``model`` into ``sink``; the fidelity if there is a text to measure on.

    Args:
        model: the checkpoint and what a bundle of it will look like.
        sink: where the weights go to.
        resume: where to continue; None begins at the beginning.
        note: called after every layer with what the fidelity text has come to.
    """
    with open_transfer(
        checkpoint=model.checkpoint.tensors,
        sources=model.parameters.sources,
        plan=model.graphs.plan,
        formats=model.graphs.formats,
        sink=sink,
    ) as transfer:
        if model.text is not None:
            return move_and_measure(transfer, model.checkpoint.config, model.text, resume, note)
        transfer.move_all(resume, note)
        return None


def _check_space(bundle: Path, work: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(work).free
    if free < needed_bytes:
        raise ExportError(
            f"{bundle}: the bundle needs {needed_bytes / 1e9:.2f} GB, {free / 1e9:.2f} GB "
            "are free; free some space or choose another place"
        )


def _write_small_files(bundle: Path, model: ExportModel, work: Path) -> dict[str, FileInfo]:
    contents = small_files(model)
    with writing(bundle):
        for name, content in contents.items():
            (work / name).write_bytes(content)
    return {
        name: FileInfo(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    }


def _check_graphs(work: Path, graphs: Graphs) -> None:
    for role in graphs.models:
        onnx.checker.check_model(str(work / GRAPH_FILES[role]))


def _manifest(
    model: ExportModel,
    weights: str,
    recipe: Recipe | None,
    files: dict[str, FileInfo],
    fidelity: Fidelity | None,
) -> Manifest:
    return build_manifest(
        config=model.checkpoint.config,
        raw_config=model.checkpoint.raw_config,
        special_tokens=model.special_tokens,
        num_mtp_layers=model.parameters.num_mtp_layers,
        weights=weights,
        formats=used_formats(recipe, model.graphs),
        plan=model.graphs.plan,
        graphs={role: GRAPH_FILES[role] for role in model.graphs.models},
        files=files,
        fidelity=fidelity,
        notes=model.notes,
    )


def _write_manifest(manifest: Manifest, work: Path, bundle: Path) -> None:
    text = manifest.to_json()
    try:
        read_manifest(text, where=MANIFEST_FILE)
    except BundleError as error:
        raise ExportError(f"{bundle}: would not open: {error}; report this") from error
    with writing(bundle):
        (work / MANIFEST_FILE).write_text(text, encoding="utf-8")
