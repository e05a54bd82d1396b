"""Every family against transformers, through files on disk and the exported bundle."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.family_cases import CASES, PUBLISHED
from tests.export.oracle import run, save
from tests.tolerances import BUNDLE_LOGITS, INT8_MEAN_KL, RANDOM_INT8_AGREEMENT
from torch import Tensor

from shoal.export import assemble
from shoal.export.config import ModelConfig
from shoal.export.families.family import families
from shoal.export.pipeline import export_bundle
from shoal.runtime import open_bundle

NUM_TOKENS = 48  # beyond the original context of the small models that stretch theirs
NEW_TOKENS = 32


@dataclass(frozen=True)
class Exported:
    """A small model of transformers and its bundles."""

    oracle: Any
    fp32: Path
    int8: Path


@pytest.fixture(scope="module", params=list(CASES))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    oracle = case.make()
    checkpoint = save(oracle, folder / "checkpoint")
    if case.model_type is not None:
        path = checkpoint / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": case.model_type}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "_Templates", functools.cache(assemble._Templates))  # traced once
        for weights in ("fp32", "int8"):
            export_bundle(
                checkpoint, folder / weights, weights=weights, block_size=32, fidelity=False
            )
    return Exported(oracle, folder / "fp32", folder / "int8")


def token_ids() -> Tensor:
    return torch.randint(2, 112, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(7))


def test_the_float_bundle_gives_the_logits_and_experts_of_transformers(exported: Exported) -> None:
    ids = token_ids()
    expected, chosen = run(exported.oracle, ids)
    model = open_bundle(exported.fp32, threads=1)
    error = np.abs(model.logits(ids[0].tolist()) - expected[0].numpy()).max()
    assert error <= BUNDLE_LOGITS, f"logits differ by {error:.3g} at most"
    if chosen:
        ours = model.routing(ids[0].tolist()).expert_ids
        for layer, theirs in enumerate(chosen):
            np.testing.assert_array_equal(np.sort(ours[layer]), theirs.sort(-1).values)


def test_greedy_tokens_are_those_of_transformers(exported: Exported) -> None:
    ids = token_ids()[0, :8].tolist()
    model = open_bundle(exported.fp32, threads=1)
    ours = list(model.generate(ids, max_new_tokens=NEW_TOKENS, stop_tokens=()))
    theirs = exported.oracle.generate(
        torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
    )
    assert ours == theirs[0, len(ids) :].tolist()


def test_the_int8_bundle_is_close_to_the_float_one(exported: Exported) -> None:
    ids = token_ids()[0].tolist()
    models = [open_bundle(folder, threads=1) for folder in (exported.fp32, exported.int8)]
    p, q = (torch.from_numpy(m.logits(ids)).double().log_softmax(-1) for m in models)
    kl = float((p.exp() * (p - q)).sum(-1).median())
    assert kl <= INT8_MEAN_KL, f"KL divergence {kl:.3g}"
    if models[0].manifest.model.moe_layers:
        a, b = (m.routing(ids).expert_ids for m in models)
        assert (a[..., :, None] == b[..., None, :]).any(-1).mean() >= RANDOM_INT8_AGREEMENT


@pytest.mark.parametrize("name", list(CASES))
def test_the_published_config_is_accepted(name: str) -> None:
    published = PUBLISHED | dict(CASES[name].published)
    config = ModelConfig.from_hf(published)
    for key in ("hidden_size", "vocab_size", "num_hidden_layers", "kv_lora_rank", "rms_norm_eps"):
        assert getattr(config, key) == published[key]
    assert len(config.moe_layers) == (
        config.num_hidden_layers - published["first_k_dense_replace"] if config.is_moe else 0
    )


def test_every_family_has_a_row() -> None:
    covered = {CASES[name].published["model_type"] for name in CASES}
    assert {family.model_types[0] for family in families().values()} <= {
        families()[model_type].model_types[0] for model_type in covered
    }
