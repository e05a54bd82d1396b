from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal.export.inspection import checkpoint_report
from shoal.graphs.footprint import (
    cache_token_bytes,
    loaded_weight_bytes,
    mapped_weight_bytes,
    memory_by_context,
)
from shoal.graphs.manifest import Manifest, TensorInfo
from shoal.runtime.commands.cli import main
from shoal.runtime.commands.inspect_command import bundle_report
from shoal.runtime.console.record_rows import fidelity_rows

pytestmark = pytest.mark.dependencies

TINY = Path(__file__).parents[2] / "checkpoints" / "tiny-v3"


def tensor(dtype: str, size: int) -> TensorInfo:
    return TensorInfo(dtype=dtype, shape=(size,), offset=0, size=size)


def test_cache_is_c_plus_r_floats_per_layer() -> None:
    assert cache_token_bytes(512, 64, 27) == 576 * 4 * 27
    assert cache_token_bytes(512, 64, 27, "float16") == 576 * 2 * 27


def test_an_int8_cache_has_a_scale_for_64_values_and_rope_keys_of_16_bits() -> None:
    assert cache_token_bytes(512, 64, 27, "int8") == (512 + 8 * 4 + 64 * 2) * 27
    assert cache_token_bytes(48, 16, 3, "int8") == (48 + 3 * 4 + 16 * 2) * 3


def test_loaded_weights_are_repacked_copies_without_embedding_and_mtp() -> None:
    tensors = {
        "embed_tokens.weight": tensor("uint8", 1000),
        "embed_tokens.weight_scales": tensor("float32", 1000),
        "mtp.0.eh_proj.weight": tensor("uint8", 1000),
        "layers.0.self_attn.w_uk": tensor("uint8", 10),
        "layers.0.self_attn.w_uk_scales": tensor("float32", 4),
        "lm_head.weight": tensor("uint8", 100),
        "lm_head.weight_scales": tensor("float32", 20),
        "norm.weight": tensor("float32", 8),
    }
    assert loaded_weight_bytes(tensors) == 100 + 2 * 20 + 8
    # What is not copied stays mapped, and so do scales, which are read while copying.
    assert mapped_weight_bytes(tensors, native=False) == 1000 + 1000 + 10 + 4 + 20
    assert mapped_weight_bytes(tensors, native=True) == 1000 + 1000 + 10 + 4 + 100 + 20 + 8


def test_a_tied_embedding_is_copied_for_the_head_and_float_experts_are_not() -> None:
    tensors = {
        "embed_tokens.weight": tensor("uint8", 1000),
        "embed_tokens.weight_scales": tensor("float32", 100),
        "layers.1.mlp.experts.down": tensor("float32", 5000),
        "layers.1.mlp.experts.down_scales": tensor("float32", 10),
    }
    assert loaded_weight_bytes(tensors) == 1000 + 2 * 100 + 2 * 10


def test_memory_list_ends_at_the_longest_context() -> None:
    rows = memory_by_context(1000, 10, 4096)
    assert [row["context_tokens"] for row in rows] == [2048, 4096]
    assert rows[-1] == {"context_tokens": 4096, "cache_bytes": 40960, "memory_bytes": 41960}


def test_bundle_report_is_json_and_holds_the_headline_numbers(manifest: Manifest) -> None:
    report = json.loads(json.dumps(bundle_report(Path("b"), manifest)))
    assert report["parameters"] == 2_000_000
    assert report["active_parameters"] == 500_000
    assert report["token_read_bytes"] == 520_000
    assert report["cache_token_bytes"] == (48 + 16) * 4 * 3
    assert report["notes"] == ["only the first MTP module was exported"]
    (row,) = report["memory"]
    assert row["context_tokens"] == 100
    assert row["cache_bytes"] == 100 * report["cache_token_bytes"]
    assert row["portable_bytes"] - row["native_bytes"] >= 2_000_000, "the copied weights"


def test_checkpoint_report_counts_what_the_model_card_says() -> None:
    report = checkpoint_report(TINY)
    assert report["parameters"] == pytest.approx(12.82e6, rel=1e-3)
    assert report["active_parameters"] == pytest.approx(5e6, rel=0.02)
    assert report["cache_token_bytes"] == (128 + 32) * 4 * 5
    assert report["num_mtp_layers"] == 1
    assert report["dtypes"] == ["BF16", "F32"]


def test_inspect_tells_a_checkpoint_by_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(TINY), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "checkpoint"
    assert main(["inspect", str(TINY)]) == 0
    assert "latent cache per token  3.2 kB" in capsys.readouterr().out


def test_inspect_refuses_a_folder_that_is_neither(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path)]) == 1
    assert "expected a bundle (a folder with manifest.json) or a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ({}, []),
        ({"top1_agreement": 0.5, "router_agreement": None}, ["same top-1 token"]),
        ({"perplexity": 2.0, "perplexity_reference": 2.0}, ["perplexity"]),
    ],
)
def test_figures_that_were_not_measured_are_left_out(
    record: dict[str, Any], names: list[str]
) -> None:
    assert [name for name, _ in fidelity_rows(record)] == names
