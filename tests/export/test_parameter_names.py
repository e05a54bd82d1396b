"""Every parameter of every family's bundle has a name in the grammar of graphs/parameters.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.export.family_cases import CASES, PUBLISHED

from shoal.export.config.model_config import ModelConfig, load_config
from shoal.export.model.transformer import CausalLM
from shoal.export.model.wiring import wiring_of
from shoal.graphs.manifest_reader import read_manifest
from shoal.graphs.parameters import Parameter


def parameter_names(config: ModelConfig, num_mtp_layers: int) -> dict[str, int]:
    """Names of the model's parameters, which the exporter is tested to give them all, and ranks."""
    with torch.device("meta"):
        model = CausalLM(config, num_mtp_layers)
    return {name: parameter.dim() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", list(CASES))
def test_every_name_of_every_family_parses(name: str) -> None:
    config = ModelConfig.from_hf(PUBLISHED | dict(CASES[name].published))
    can_have_mtp = wiring_of(config).mtp is not None
    found = parameter_names(config, int(can_have_mtp))
    assert len(found) > 5 * config.num_hidden_layers
    for parameter, rank in found.items():
        parsed = Parameter.parse(parameter)
        assert str(parsed) == parameter
        assert parsed.is_mtp == parameter.startswith("mtp.")
        if rank == 1:
            assert parsed.kind is None, "norms and biases stay float32"


def test_the_tensors_of_a_bundle_are_the_parameters_and_the_scales_of_those_with_a_kind(
    int8_bundle: Path, tiny_checkpoint: Path
) -> None:
    text = (int8_bundle / "manifest.json").read_bytes()
    manifest = read_manifest(text, "manifest.json")
    _, config = load_config(tiny_checkpoint)
    names = parameter_names(config, manifest.model.num_mtp_layers)
    parameters = {Parameter.parse(name) for name in names}
    scales = {parameter.scales for parameter in parameters if parameter.kind is not None}
    assert {Parameter.parse(name) for name in manifest.tensors} == parameters | scales
