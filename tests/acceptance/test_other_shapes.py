"""Random checkpoints of other architectures, through exported bundles, against transformers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.oracle import make_v2, make_v3, run, save
from tests.tolerances import BUNDLE_LOGITS, FIDELITY_EMULATION

from shoal.export.fidelity.text import fidelity_windows
from shoal.export.pipeline import export_bundle
from shoal.export.tokenizer.files import read_tokenizer
from shoal.runtime import Model, open_bundle
from shoal.runtime.bundle import Bundle

SIZES = {
    "vocab_size": 4096,  # the tiny model's, whose tokenizer they borrow for the fidelity report
    "hidden_size": 64,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "max_position_embeddings": 128,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
MODELS: dict[str, Callable[[], Any]] = {
    "V2 with groups, YaRN and full-rank queries": lambda: make_v2(
        **SIZES | {"q_lora_rank": None},
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        n_shared_experts=2,
        rope_parameters=YARN,
    ),
    "V2 greedy with a tied head": lambda: make_v2(**SIZES, tie_word_embeddings=True),
    "V3 with attention biases and half-split RoPE": lambda: make_v3(
        **SIZES, attention_bias=True, rope_interleave=False, norm_topk_prob=False
    ),
    "V3 without experts, head tied": lambda: make_v3(
        **SIZES, first_k_dense_replace=3, tie_word_embeddings=True
    ),
}


@pytest.fixture(scope="module", params=MODELS, ids=str)
def oracle(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def checkpoint(
    oracle: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = save(oracle, tmp_path_factory.mktemp("random"))
    shutil.copy(tiny_checkpoint / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def float_model(checkpoint: Path) -> Model:
    export_bundle(checkpoint, checkpoint / "fp32", weights="fp32")
    return open_bundle(checkpoint / "fp32", threads=1)


def test_the_float_bundle_equals_transformers(oracle: Any, float_model: Model) -> None:
    ids = torch.randint(0, 4096, (1, 100), generator=torch.Generator().manual_seed(4))
    logits, chosen = run(oracle, ids)
    context = float_model.new_context()
    parts = [ids[0, :70], *ids[0, 70:].split(1)]  # one chunk, then token by token
    steps = [context.step(part.tolist(), logits="all", routing=True) for part in parts]
    error = np.abs(np.concatenate([step.logits for step in steps]) - logits[0].numpy()).max()
    assert error <= BUNDLE_LOGITS, f"logits differ by {error:.3g} at most"
    found = np.concatenate([step.routing.expert_ids for step in steps if step.routing], axis=1)
    assert len(found) == len(chosen)
    for ours, theirs in zip(found, chosen, strict=True):
        np.testing.assert_array_equal(np.sort(ours), theirs.sort().values)


def test_the_int8_bundle_is_as_faithful_as_its_report_says(
    checkpoint: Path, float_model: Model
) -> None:
    export_bundle(checkpoint, checkpoint / "int8", block_size=32, fidelity_tokens=1024)
    model = open_bundle(checkpoint / "int8", threads=1)
    report = model.manifest.fidelity
    assert report is not None
    assert report["window"] == 128
    path = checkpoint / "tokenizer.json"
    tokenizer = read_tokenizer(path.read_bytes(), path)
    _, windows = fidelity_windows(tokenizer, None, 1024, window=128)
    pairs = [
        [torch.from_numpy(m.logits(ids)).double().log_softmax(-1) for m in (float_model, model)]
        for ids in windows.tolist()
    ]
    kl = torch.stack([(p.exp() * (p - q)).sum(-1).mean() for p, q in pairs]).mean().item()
    assert 1 / FIDELITY_EMULATION <= kl / report["kl_mean"] <= FIDELITY_EMULATION


def test_a_tied_table_is_stored_once(oracle: Any, checkpoint: Path, float_model: Model) -> None:
    tensors = Bundle.open(float_model.bundle.folder).manifest.tensors
    tables = [name for name, info in tensors.items() if info.shape == (4096, 64)]
    tied = oracle.config.tie_word_embeddings
    assert tables == (
        ["embed_tokens.weight"] if tied else ["embed_tokens.weight", "lm_head.weight"]
    )
