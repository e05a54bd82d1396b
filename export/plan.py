"""What a bundle of a checkpoint will be: its tensors, graphs and files, before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from shoal.export.checkpoint.open_checkpoint import Checkpoint
from shoal.export.checkpoint.tensor_names import ParameterSources, parameter_sources
from shoal.export.config.model_config import ModelConfig
from shoal.export.config.rope_scaling import LongRopeScaling
from shoal.export.fidelity.text import FidelityText, TextChoice, check_calibration, fidelity_text
from shoal.export.tokenizer.files import check_tokenizer
from shoal.export.tokenizer.special_tokens import SpecialTokens
from shoal.export.tracing.assemble import Graphs, build_graphs
from shoal.graphs.contract import GRAPH_FILES
from shoal.graphs.parameters import Parameter
from shoal.graphs.recipes import Recipe, WeightFormat


@dataclass(frozen=True, kw_only=True)
class ExportModel:
    """A checkpoint that was found complete, with what a bundle of it will look like."""

    checkpoint: Checkpoint
    parameters: ParameterSources
    special_tokens: SpecialTokens
    tokenizer: dict[str, bytes]  # content of the tokenizer's files
    text: FidelityText | None
    graphs: Graphs
    notes: tuple[str, ...]


def open_model(checkpoint: Checkpoint, recipe: Recipe | None, choice: TextChoice) -> ExportModel:
    """Plan a bundle; what is quick to check is checked first.

    Args:
        checkpoint: what it is made from.
        recipe: how weights are stored, None for float32.
        choice: the texts for fidelity and calibration.

    Raises:
        ConfigError: the model cannot be built.
        CheckpointError: tensors are missing, unexpected or of a wrong shape, or the tokenizer
            cannot be read.
        ExportError: a text cannot be used.
    """
    config = checkpoint.config
    parameters = parameter_sources(config, checkpoint.tensors)
    special_tokens, tokenizer = checkpoint.special_tokens, checkpoint.tokenizer
    check_calibration(recipe, choice)
    text, notes = None, (*parameters.notes, *_rope_notes(config))
    if choice.wanted and recipe is not None:
        text, text_notes = fidelity_text(tokenizer, checkpoint.path, config, choice)
        notes = (*notes, *text_notes)
    else:
        check_tokenizer(tokenizer, checkpoint.path)
    graphs = build_graphs(config, num_mtp_layers=parameters.num_mtp_layers, recipe=recipe)
    return ExportModel(
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
    found = {Parameter.parse(name).kind for name in graphs.formats}
    return {kind: form for kind, form in recipe.formats.items() if kind in found}


def _rope_notes(config: ModelConfig) -> tuple[str, ...]:
    scaling = config.rope_scaling
    if not isinstance(scaling, LongRopeScaling) or scaling.short_factor == scaling.long_factor:
        return ()
    return (
        f"rotary frequencies change beyond {scaling.original_max_position_embeddings} tokens of "
        "context; tokens already in the cache keep theirs, as in transformers, which a prompt that "
        "crosses this border in several calls notices",
    )


def serialized(graph: onnx.ModelProto) -> bytes:
    """The bytes of a graph file, the same for the same graph."""
    return bytes(graph.SerializeToString(deterministic=True))


def small_files(model: ExportModel) -> dict[str, bytes]:
    """Content of every file of the bundle but the weights and the manifest."""
    graphs = model.graphs.models
    return {GRAPH_FILES[role]: serialized(graphs[role]) for role in graphs} | model.tokenizer
