"""A whole reference model in memory, from a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

import torch

from shoal.export.checkpoint.safetensors_files import Checkpoint
from shoal.export.checkpoint.tensor_names import parameter_sources
from shoal.export.config.model_config import load_config
from shoal.export.model.transformer import CausalLM


def load_model(folder: Path) -> CausalLM:
    """The float32 reference model of a checkpoint; for tests, notebooks and small models.

    Raises:
        ConfigError: The architecture is not supported.
        CheckpointError: The checkpoint is incomplete or damaged.
    """
    _, config = load_config(folder)
    checkpoint = Checkpoint.open(folder, config.fp8_block)
    parameters = parameter_sources(config, checkpoint)
    with torch.device("meta"):
        model = CausalLM(config, parameters.num_mtp_layers)
    weights = {name: source.load(checkpoint) for name, source in parameters.sources.items()}
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()
