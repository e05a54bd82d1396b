"""Export: from a checkpoint folder to a bundle folder.

read config -> match tensor names -> build graphs -> write graphs -> stream weights (and measure
fidelity) -> check -> write the manifest -> rename into place
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from tokenizers import Tokenizer
from torch import Tensor

from shoal.export.bundle_manifest import build_manifest
from shoal.export.checkpoint.open_checkpoint import open_tokenizer, open_weights, read_config
from shoal.export.checkpoint.safetensors_files import Checkpoint
from shoal.export.checkpoint.tensor_names import ParameterSources, parameter_sources
from shoal.export.config.model_config import ModelConfig
from shoal.export.config.rope_scaling import LongRopeScaling
from shoal.export.fidelity.calibration import CalibrationText
from shoal.export.fidelity.head_comparison import WINDOW, Fidelity, fidelity_windows, read_tokenizer
from shoal.export.peak_memory import peak_memory_bytes
from shoal.export.tokenizer.files import TOKENIZER_FILE
from shoal.export.tokenizer.special_tokens import SpecialTokens
from shoal.export.tracing.assemble import Graphs, build_graphs
from shoal.export.transfer import FidelityText, Transfer
from shoal.export.writing.folder import replaced_folder, writing
from shoal.export.writing.journal import Journal, ResumePoint, fingerprint
from shoal.export.writing.sinks import CompareSink, FileSink, Progress
from shoal.graphs.contract import GRAPH_FILES, MANIFEST_FILE, WEIGHTS_FILE
from shoal.graphs.errors import BundleError, CheckpointError, ExportError
from shoal.graphs.manifest import FileInfo, Manifest
from shoal.graphs.recipes import (
    DEFAULT_RECIPE,
    FLOAT32,
    INT4_EXPERTS,
    Recipe,
    WeightFormat,
    choose_recipe,
    weight_kind,
)

DEFAULT_FIDELITY_TOKENS = 2048
DEFAULT_CALIBRATE_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export did.

    Attributes:
        bundle: where the bundle is now.
        manifest: its manifest, fidelity included.
        seconds: wall-clock time.
        peak_memory_bytes: largest resident memory of the process so far.
    """

    bundle: Path
    manifest: Manifest
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class TextChoice:
    """What fidelity is to be measured on, if at all and if the weights are int8."""

    wanted: bool
    path: Path | None  # None: the text shipped with shoal
    num_tokens: int
    calibrate: Path | None = None  # text that improves rounding to 4 bits
    calibrate_tokens: int = DEFAULT_CALIBRATE_TOKENS


@dataclass(frozen=True, kw_only=True)
class ExportModel:
    """A checkpoint that was found complete, with what a bundle of it will look like."""

    config: ModelConfig
    raw_config: dict[str, Any]
    checkpoint: Checkpoint
    parameters: ParameterSources
    special_tokens: SpecialTokens
    tokenizer: dict[str, bytes]  # content of the tokenizer's files
    text: FidelityText | None
    graphs: Graphs
    notes: tuple[str, ...]


def export_bundle(
    checkpoint: Path,
    bundle: Path,
    *,
    weights: str = DEFAULT_RECIPE,
    block_size: int | None = None,
    force: bool = False,
    resume: bool = False,
    fidelity: bool = True,
    fidelity_text: Path | None = None,
    fidelity_tokens: int = DEFAULT_FIDELITY_TOKENS,
    calibrate: Path | None = None,
    calibrate_tokens: int = DEFAULT_CALIBRATE_TOKENS,
    progress: Progress = lambda done, total, what: None,
) -> ExportReport:
    """Export a checkpoint to a bundle.

    Args:
        checkpoint: folder with config.json, *.safetensors and tokenizer files, or a GGUF file.
        bundle: folder to make; appears complete or not at all.
        weights: a recipe of graphs/recipes.py, or "fp32".
        block_size: 8-bit weights per scale, 16 to 256, instead of the recipe's choice.
        force: replace a bundle that is there already.
        resume: continue an export that was stopped; the result is that of an uninterrupted one.
        fidelity: measure KL divergence and agreement of the int8 weights on the way.
        fidelity_text: UTF-8 text to measure on; None takes the one shipped with shoal.
        fidelity_tokens: how many tokens of it to use at most.
        calibrate: UTF-8 text whose inputs of routed experts 4-bit weights are rounded for.
        calibrate_tokens: how many tokens of it to use at most.
        progress: called with (bytes written, bytes in all, tensor name).

    Raises:
        ConfigError: the architecture or a config key is not supported.
        CheckpointError: the checkpoint is incomplete or damaged.
        ExportError: the bundle cannot be written.
    """
    start = time.monotonic()
    recipe = choose_recipe(weights, block_size)
    with replaced_folder(bundle, force=force, keep=resume) as work:
        model = open_model(
            checkpoint,
            recipe,
            TextChoice(
                wanted=fidelity,
                path=fidelity_text,
                num_tokens=fidelity_tokens,
                calibrate=calibrate,
                calibrate_tokens=calibrate_tokens,
            ),
        )
        files, measured = _write_files(bundle, work, model, resume, progress)
        _check_graphs(work, model.graphs)
        manifest = build_manifest(
            config=model.config,
            raw_config=model.raw_config,
            special_tokens=model.special_tokens,
            num_mtp_layers=model.parameters.num_mtp_layers,
            weights=weights,
            formats=used_formats(recipe, model.graphs),
            plan=model.graphs.plan,
            graphs={role: GRAPH_FILES[role] for role in model.graphs.models},
            files=files,
            fidelity=measured,
            notes=model.notes,
        )
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
        fingerprint(model.checkpoint, model.raw_config, plan, model.graphs.formats, texts),
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
        measured = transfer_of(model, sink).run(point, note)
        files[WEIGHTS_FILE] = sink.finish()
    finally:
        sink.close()
    journal.remove()
    return files, measured


def open_model(folder: Path, recipe: Recipe | None, choice: TextChoice) -> ExportModel:
    """Everything of a checkpoint but its weights; what is quick to check is checked first."""
    raw_config, config = read_config(folder)
    checkpoint = open_weights(folder, config)
    parameters = parameter_sources(config, checkpoint)
    tokenizer, special_tokens = open_tokenizer(folder, raw_config, config.vocab_size)
    _check_calibration(recipe, choice)
    text, notes = None, (*parameters.notes, *_rope_notes(config))
    if choice.wanted and recipe is not None:
        text, text_notes = _text(folder, tokenizer, config, choice)
        notes = (*notes, *text_notes)
    graphs = build_graphs(config, num_mtp_layers=parameters.num_mtp_layers, recipe=recipe)
    return ExportModel(
        config=config,
        raw_config=raw_config,
        checkpoint=checkpoint,
        parameters=parameters,
        special_tokens=special_tokens,
        tokenizer=tokenizer,
        text=text,
        graphs=graphs,
        notes=notes,
    )


def used_formats(recipe: Recipe | None, graphs: Graphs) -> dict[str, WeightFormat]:
    """The formats of the kinds of weights that there are."""
    if recipe is None:
        return {}
    found = {weight_kind(name) for name in graphs.formats}
    return {kind: form for kind, form in recipe.formats.items() if kind in found}


def transfer_of(model: ExportModel, sink: FileSink | CompareSink) -> Transfer:
    """The pass over all weights of ``model`` into ``sink``."""
    return Transfer(
        model.config,
        model.checkpoint,
        model.parameters.sources,
        model.graphs.plan,
        model.graphs.formats,
        sink,
        model.text,
    )


def _text(
    folder: Path, files: dict[str, bytes], config: ModelConfig, choice: TextChoice
) -> tuple[FidelityText | None, tuple[str, ...]]:
    """The fidelity text, or a note why there is none."""
    if TOKENIZER_FILE not in files:
        return None, ("fidelity was not measured: the checkpoint has no tokenizer",)
    window = min(WINDOW, config.max_position_embeddings)
    tokenizer = read_tokenizer(files[TOKENIZER_FILE], folder / TOKENIZER_FILE)
    name, ids_BT = fidelity_windows(tokenizer, choice.path, choice.num_tokens, window=window)
    calibration = _calibration(tokenizer, choice, ids_BT.shape[1])
    text = FidelityText(name=name, ids_BT=ids_BT, calibration=calibration)
    largest = int(text.all_ids.max())
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{folder / TOKENIZER_FILE}: expected token ids below vocab_size {config.vocab_size}, "
            f"found {largest}; config.json and tokenizer.json must belong together"
        )
    return text, ()


def _check_calibration(recipe: Recipe | None, choice: TextChoice) -> None:
    if choice.calibrate is None:
        return
    if recipe is None or all(form.bits != 4 for form in recipe.formats.values()):
        found = FLOAT32 if recipe is None else recipe.name
        raise ExportError(
            f"--calibrate: expected a recipe with 4-bit weights, found {found}; add --weights "
            f"{INT4_EXPERTS} or leave it out"
        )
    if not choice.wanted:
        raise ExportError("--calibrate: works while fidelity is measured; drop --no-fidelity")


def _calibration(tokenizer: Tokenizer, choice: TextChoice, window: int) -> CalibrationText | None:
    """Windows spread over the text to calibrate on, as long as those fidelity is measured on."""
    if choice.calibrate is None:
        return None
    name, all_BT = fidelity_windows(
        tokenizer, choice.calibrate, sys.maxsize, window=window, option="--calibrate"
    )
    count = min(len(all_BT), choice.calibrate_tokens // window)
    if all_BT.shape[1] < window or count < 1:
        raise ExportError(
            f"{name}: expected a window of {window} tokens, found "
            f"{min(all_BT.numel(), choice.calibrate_tokens)} tokens; choose a longer text or more "
            "--calibrate-tokens"
        )
    chosen = torch.arange(count) * len(all_BT) // count
    return CalibrationText(name=name, ids_BT=all_BT[chosen])


def _rope_notes(config: ModelConfig) -> tuple[str, ...]:
    scaling = config.rope_scaling
    if not isinstance(scaling, LongRopeScaling) or scaling.short_factor == scaling.long_factor:
        return ()
    return (
        f"rotary frequencies change beyond {scaling.original_max_position_embeddings} tokens of "
        "context; tokens already in the cache keep theirs, as in transformers, which a prompt that "
        "crosses this border in several calls notices",
    )


def _check_space(bundle: Path, work: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(work).free
    if free < needed_bytes:
        raise ExportError(
            f"{bundle}: the bundle needs {needed_bytes / 1e9:.2f} GB, {free / 1e9:.2f} GB "
            "are free; free some space or choose another place"
        )


def serialized(graph: onnx.ModelProto) -> bytes:
    """The bytes of a graph file, the same for the same graph."""
    return bytes(graph.SerializeToString(deterministic=True))


def small_files(model: ExportModel) -> dict[str, bytes]:
    """Content of every file of the bundle but the weights and the manifest."""
    graphs = model.graphs.models
    return {GRAPH_FILES[role]: serialized(graphs[role]) for role in graphs} | model.tokenizer


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


def _write_manifest(manifest: Manifest, work: Path, bundle: Path) -> None:
    text = manifest.to_json()
    try:
        Manifest.from_json(text, where=MANIFEST_FILE)
    except BundleError as error:
        raise ExportError(f"{bundle}: would not open: {error}; report this") from error
    with writing(bundle):
        (work / MANIFEST_FILE).write_text(text, encoding="utf-8")
