"""A whole reference model in memory, from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from shoal.export.checkpoint.open_checkpoint import Checkpoint, open_checkpoint
from shoal.export.checkpoint.tensor_names import parameter_sources
from shoal.export.model.transformer import CausalLM


def load_model(
    name: str | Path, *, revision: str | None = None, token: str | None = None
) -> CausalLM:
    """The float32 reference model of a checkpoint; for tests, notebooks and small models.

    Args:
        name: a Hugging Face folder (config.json and *.safetensors), a .gguf file, or ORG/NAME on
            the Hugging Face Hub.
        revision: branch, tag or commit of a checkpoint on the hub; None for the main branch.
        token: for the hub; None for HF_TOKEN or a login, if there is one.

    Raises:
        ConfigError: The architecture is not supported.
        CheckpointError: The checkpoint is incomplete or damaged.
    """
    return model_of(open_checkpoint(name, revision=revision, token=token))


def model_of(checkpoint: Checkpoint) -> CausalLM:
    """The float32 reference model of an opened checkpoint.

    Raises:
        CheckpointError: The checkpoint is incomplete or damaged.
    """
    parameters = parameter_sources(checkpoint.config, checkpoint.tensors)
    with torch.device("meta"):
        model = CausalLM(checkpoint.config, parameters.num_mtp_layers)
    weights = {name: s.load(checkpoint.tensors) for name, s in parameters.sources.items()}
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()
