"""Which checkpoint tensors make which parameter, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.export.family_cases import CASES
from tests.export.oracle import make_v3, raw_config, save
from tests.export.sparse_checkpoint import V3, write_sparse
from torch import Tensor

from shoal.export.checkpoint.safetensors_files import SafetensorsFiles
from shoal.export.checkpoint.tensor_names import ParameterSources, parameter_sources
from shoal.export.checkpoint.weight_files import INDEX_FILE
from shoal.export.config.model_config import load_config
from shoal.export.model.transformer import CausalLM
from shoal.graphs.errors import CheckpointError

pytestmark = pytest.mark.dependencies

TINY = Path(__file__).parents[3] / "checkpoints" / "tiny-v3"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random V3 checkpoint as transformers writes it."""
    return save(make_v3(), tmp_path_factory.mktemp("original"))


def sources_of(folder: Path) -> ParameterSources:
    _, config = load_config(folder)
    return parameter_sources(config, SafetensorsFiles.open(folder))


def changed(
    original: Path, folder: Path, tensors: Mapping[str, Tensor | None], **config: Any
) -> Path:
    """A copy with other tensors (None: without them) and other config keys."""
    weights = {**load_file(original / "model.safetensors"), **tensors}
    save_file(
        {name: tensor for name, tensor in weights.items() if tensor is not None},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(raw_config(original) | config))
    return folder


def mtp_tensors(layer: int, original: Path) -> dict[str, Tensor]:
    """An MTP layer made of a copy of layer 1 and what only MTP has."""
    weights = load_file(original / "model.safetensors")
    prefix = f"model.layers.{layer}."
    copied = {
        prefix + name.removeprefix("model.layers.1."): tensor.clone()
        for name, tensor in weights.items()
        if name.startswith("model.layers.1.")
    }
    return copied | {
        f"{prefix}enorm.weight": torch.ones(48),
        f"{prefix}hnorm.weight": torch.ones(48),
        f"{prefix}eh_proj.weight": torch.ones(48, 96),
        f"{prefix}shared_head.norm.weight": torch.ones(48),
        f"{prefix}embed_tokens.weight": torch.ones(97, 48),
        f"{prefix}shared_head.head.weight": torch.ones(97, 48),
    }


@pytest.mark.parametrize("folder", [TINY, None], ids=["tiny-v3", "random"])
def test_parameters_are_those_of_the_model_with_their_shapes(
    folder: Path | None, original: Path
) -> None:
    found = sources_of(folder or original)
    _, config = load_config(folder or original)
    with torch.device("meta"):
        model = CausalLM(config, found.num_mtp_layers)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert {name: source.shape for name, source in found.sources.items()} == expected


def test_loaded_parameters_have_the_shape_they_announce(original: Path) -> None:
    checkpoint = SafetensorsFiles.open(original)
    for name, source in sources_of(original).sources.items():
        assert source.load(checkpoint).shape == source.shape, name


def test_key_and_value_parts_are_the_rows_of_each_head(original: Path) -> None:
    checkpoint = SafetensorsFiles.open(original)
    sources = sources_of(original).sources
    heads = checkpoint.read("model.layers.0.self_attn.kv_b_proj.weight").reshape(4, 28, 24)
    w_uk = sources["layers.0.self_attn.w_uk"]
    w_uv = sources["layers.0.self_attn.w_uv"]
    assert torch.equal(w_uk.load(checkpoint), heads[:, :16])
    assert torch.equal(w_uv.load(checkpoint), heads[:, 16:])
    assert torch.equal(w_uv.load_rows(checkpoint, 1, 3), heads[1:3, 16:])


def test_gate_and_up_rows_of_experts_are_interleaved(original: Path) -> None:
    checkpoint = SafetensorsFiles.open(original)
    sources = sources_of(original).sources
    prefix = "model.layers.1.mlp.experts.5."
    gate_up = sources["layers.1.mlp.experts.gate_up"].load_rows(checkpoint, 5, 6)[0]
    assert torch.equal(gate_up[0::2], checkpoint.read(f"{prefix}gate_proj.weight"))
    assert torch.equal(gate_up[1::2], checkpoint.read(f"{prefix}up_proj.weight"))
    down = sources["layers.1.mlp.experts.down"]
    expected = checkpoint.read(f"{prefix}down_proj.weight")
    assert torch.equal(down.load_rows(checkpoint, 5, 6)[0], expected)
    assert torch.equal(down.load(checkpoint)[5], expected)


def test_missing_unexpected_and_misshapen_tensors_are_named_together(
    original: Path, tmp_path: Path
) -> None:
    folder = changed(
        original,
        tmp_path,
        {
            "model.norm.weight": None,
            "model.layers.1.mlp.experts.3.up_proj.weight": None,
            "model.layers.0.mlp.gate_proj.weight": torch.ones(41, 48),
            "model.layers.0.self_attn.surprise": torch.ones(2),
            "lm_head.weight": torch.ones(97, 48, dtype=torch.int32),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        sources_of(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert f"{folder}: 5 problems: " in message
    assert "missing model.norm.weight [48]" in message
    assert "missing model.layers.1.mlp.experts.3.up_proj.weight [24, 48]" in message
    assert "mlp.gate_proj.weight: expected shape [40, 48], found [41, 48]" in message
    assert "unexpected model.layers.0.self_attn.surprise [2]" in message
    assert "lm_head.weight: expected F32, F16, BF16, F8_E4M3, found I32" in message


def test_one_expert_that_is_missing_from_one_layer_of_a_large_model_is_named(
    tmp_path: Path,
) -> None:
    write_sparse(tmp_path, V3 | {"num_hidden_layers": 18})
    index = tmp_path / INDEX_FILE
    content = json.loads(index.read_text())
    del content["weight_map"]["model.layers.17.mlp.experts.201.down_proj.weight"]
    index.write_text(json.dumps(content))
    expected = r": missing model\.layers\.17\.mlp\.experts\.201\.down_proj\.weight \[7168, 2048\]; "
    with pytest.raises(CheckpointError, match=expected):
        sources_of(tmp_path)


def test_a_missing_stack_of_experts_is_named_as_a_stack(original: Path, tmp_path: Path) -> None:
    experts: dict[str, Tensor | None] = {
        f"model.layers.1.mlp.experts.{e}.{part}_proj.weight": None
        for e in range(8)
        for part in ("gate", "up", "down")
    }
    stacked = {"model.layers.1.mlp.experts.gate_up_proj": torch.ones(8, 48, 48)}
    folder = changed(original, tmp_path, experts | stacked)
    with pytest.raises(CheckpointError, match=r"missing .*experts.down_proj \[8, 48, 24\]"):
        sources_of(folder)


def test_buffers_of_older_files_are_ignored(original: Path, tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    assert sources_of(changed(original, tmp_path, extra)).notes == ()


def test_a_head_stored_beside_a_tied_embedding_is_ignored(original: Path, tmp_path: Path) -> None:
    found = sources_of(changed(original, tmp_path, {}, tie_word_embeddings=True))
    assert "lm_head.weight" not in found.sources


def test_announced_mtp_modules_without_weights_are_left_out_with_a_note(
    original: Path, tmp_path: Path
) -> None:
    found = sources_of(changed(original, tmp_path, {}, num_nextn_predict_layers=1))
    assert found.num_mtp_layers == 0
    assert "no weights" in found.notes[0]


def test_the_mtp_module_of_longcat_is_left_out_with_a_note(tmp_path: Path) -> None:
    folder = save(CASES["longcat_flash"].make(num_layers=1), tmp_path)
    assert sources_of(folder).notes == ()
    file = folder / "model.safetensors"
    save_file(load_file(file) | {"model.mtp.layers.0.eh_proj.weight": torch.ones(64, 128)}, file)
    found = sources_of(folder)
    assert found.num_mtp_layers == 0
    assert "model.mtp.*" in found.notes[0]


def test_the_first_of_several_mtp_modules_is_taken_with_a_note(
    original: Path, tmp_path: Path
) -> None:
    tensors = mtp_tensors(3, original) | mtp_tensors(4, original)
    found = sources_of(changed(original, tmp_path, tensors, num_nextn_predict_layers=2))
    assert found.num_mtp_layers == 1
    assert "only the first of 2" in found.notes[0]
    assert {name.split(".")[1] for name in found.sources if name.startswith("mtp.")} == {"0"}


def test_mtp_weights_that_the_config_does_not_announce_are_unexpected(
    original: Path, tmp_path: Path
) -> None:
    folder = changed(original, tmp_path, mtp_tensors(3, original), num_nextn_predict_layers=0)
    with pytest.raises(CheckpointError, match=r"unexpected model\.layers\.3\.enorm\.weight"):
        sources_of(folder)


def test_a_damaged_mtp_module_is_reported_like_any_layer(original: Path, tmp_path: Path) -> None:
    tensors: dict[str, Tensor | None] = {**mtp_tensors(3, original)}
    tensors["model.layers.3.eh_proj.weight"] = None
    folder = changed(original, tmp_path, tensors, num_nextn_predict_layers=1)
    with pytest.raises(CheckpointError, match=r"missing model\.layers\.3\.eh_proj\.weight"):
        sources_of(folder)
