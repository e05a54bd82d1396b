"""Check a bundle against its checkpoint: every file and every weight derived again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shoal.export.checkpoint.open_checkpoint import open_checkpoint
from shoal.export.fidelity.head_comparison import Fidelity
from shoal.export.fidelity.text import TextChoice
from shoal.export.pipeline import move_weights
from shoal.export.plan import ExportModel, open_model, small_files
from shoal.export.writing.sinks import CompareSink, Progress
from shoal.graphs.contract import MANIFEST_FILE, TOKENIZER_FILES, WEIGHTS_FILE
from shoal.graphs.errors import ExportError
from shoal.graphs.fidelity import DEFAULT_FIDELITY_TOKENS
from shoal.graphs.manifest import Manifest
from shoal.graphs.manifest_reader import read_manifest
from shoal.graphs.parameters import Parameter
from shoal.graphs.recipes import FLOAT32, Recipe


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """How a bundle compares with the checkpoint it was made from.

    Attributes:
        tensors: how many tensors of weights.bin were compared.
        unchecked: names of those that were not, because they were rounded for a text.
        differing: names of the tensors and files that differ; empty when all is well.
        fidelity: measured again, or None without a tokenizer.
    """

    tensors: int
    differing: tuple[str, ...]
    fidelity: Fidelity | None
    unchecked: tuple[str, ...] = ()


def verify_against_checkpoint(
    bundle: Path,
    checkpoint: str | Path,
    *,
    fidelity_text: Path | None = None,
    fidelity_tokens: int = DEFAULT_FIDELITY_TOKENS,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress = lambda done, total, what: None,
) -> VerifyReport:
    """Derive every file of a bundle from the checkpoint again and compare.

    Args:
        bundle: the bundle folder; its own bytes are checked by ``shoal verify`` beforehand.
        checkpoint: what it is said to come from: a Hugging Face folder (config.json and
            *.safetensors), a .gguf file, or ORG/NAME on the Hugging Face Hub.
        fidelity_text: as in ``export_bundle``.
        fidelity_tokens: as in ``export_bundle``.
        revision: as in ``export_bundle``.
        token: as in ``export_bundle``.
        progress: called with (bytes compared, bytes in all, tensor name).

    Raises:
        BundleError: the manifest is damaged.
        ConfigError: the checkpoint is not supported.
        CheckpointError: the checkpoint is incomplete or damaged.
        ExportError: the bundle was made from a checkpoint with another config.
    """
    where = bundle / MANIFEST_FILE
    manifest = read_manifest(where.read_text(encoding="utf-8"), where=str(where))
    opened = open_checkpoint(checkpoint, revision=revision, token=token)
    if opened.raw_config != manifest.config:
        raise ExportError(
            f"{bundle}: was made from a checkpoint with another config.json than {checkpoint}'s; "
            "name the right one or export it again"
        )
    is_calibrated = "calibration" in (manifest.fidelity or {})
    choice = TextChoice(wanted=not is_calibrated, path=fidelity_text, num_tokens=fidelity_tokens)
    model = open_model(opened, _recipe_of(manifest), choice)
    files = small_files(model)
    differing = [
        name
        for name in (*(name for name in files if name not in TOKENIZER_FILES), *TOKENIZER_FILES)
        if _content(bundle / name) != files.get(name)
    ]
    sink = CompareSink(
        bundle / WEIGHTS_FILE, manifest.tensors, model.graphs.plan.total_bytes, progress
    )
    try:
        measured = move_weights(model, sink)
    finally:
        sink.close()
    unchecked = _calibrated_tensors(model) if is_calibrated else ()
    return VerifyReport(
        tensors=len(manifest.tensors) - len(unchecked),
        differing=(*differing, *(name for name in sink.differing if name not in unchecked)),
        fidelity=measured,
        unchecked=unchecked,
    )


def _calibrated_tensors(model: ExportModel) -> tuple[str, ...]:
    """Names of what was rounded for a text, which the checkpoint alone does not give."""
    formats = model.graphs.formats.items()
    packed = [Parameter.parse(name) for name, form in formats if form.bits == 4]
    rounded = [parameter for parameter in packed if parameter.layer is not None]
    return tuple(str(tensor) for kept in rounded for tensor in (kept, kept.scales))


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _recipe_of(manifest: Manifest) -> Recipe | None:
    """How a bundle says its weights are stored."""
    if manifest.weights == FLOAT32:
        return None
    return Recipe(name=manifest.weights, meaning="", formats=manifest.formats)
