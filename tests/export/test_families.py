"""Every family against transformers, through files on disk and the exported bundle."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.family_cases import CASES, PUBLISHED, Case
from tests.export.oracle import run, save
from tests.tolerances import (
    BUNDLE_LOGITS,
    FIDELITY_EMULATION,
    FLOAT32_LOGITS,
    RANDOM_INT8_AGREEMENT,
    RANDOM_INT8_MEDIAN_KL,
    REPORTED,
)
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy

from shoal.export.config.families.family import families
from shoal.export.config.model_config import ModelConfig
from shoal.export.fidelity.text import fidelity_windows
from shoal.export.optimum.cache_name import CACHE
from shoal.export.pipeline import export_bundle
from shoal.export.tokenizer.files import read_tokenizer
from shoal.graphs.text.library_tokenizer import LibraryTokenizer
from shoal.runtime import open_bundle

pytestmark = pytest.mark.dependencies

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
    return export_case(CASES[request.param], tmp_path_factory.mktemp(request.param))


def export_case(case: Case, folder: Path) -> Exported:
    """Write a family's small model as its authors would, and export it."""
    oracle = case.make()
    checkpoint = save(oracle, folder / "checkpoint")
    if case.model_type is not None:
        path = checkpoint / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": case.model_type}))
    character_tokenizer().save(str(checkpoint / "tokenizer.json"))
    for weights in ("fp32", "int8"):
        export_bundle(
            checkpoint, folder / weights, weights=weights, block_size=32, fidelity_tokens=192
        )
    return Exported(oracle, folder / "fp32", folder / "int8")


def read_characters() -> LibraryTokenizer:
    return read_tokenizer(character_tokenizer().to_str().encode(), Path("tokenizer.json"))


def character_tokenizer() -> Tokenizer:
    """One token for each character of the shipped text, within the small vocabulary."""
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    vocabulary = {character: token for token, character in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="\n"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return tokenizer


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


def test_a_prompt_read_in_pieces_is_what_transformers_makes_of_the_pieces(
    exported: Exported,
) -> None:
    """Also where the second piece goes beyond the original context of stretched models."""
    ids, split = token_ids(), 20
    context = open_bundle(exported.fp32, threads=1).new_context()
    ours = [context.prefill(part[0].tolist()) for part in (ids[:, :split], ids[:, split:])]
    with torch.inference_mode():
        first = exported.oracle(ids[:, :split], use_cache=True)
        second = exported.oracle(ids[:, split:], **{CACHE: first[CACHE]})
    for found, expected in zip(ours, (first, second), strict=True):
        assert np.abs(found - expected.logits[0, -1].numpy()).max() <= BUNDLE_LOGITS


def test_contexts_read_in_one_step_give_what_they_give_apart(exported: Exported) -> None:
    for bundle, tolerance in ((exported.int8, 0.0), (exported.fp32, FLOAT32_LOGITS)):
        model = open_bundle(bundle, threads=1)
        together = [model.new_context() for _ in range(3)]
        for length, context in zip((1, 9, 40), together, strict=True):
            context.prefill(token_ids()[0, :length].numpy())
        apart = [context.fork() for context in together]
        found = model.decode_batch(together, [5, 6, 7])
        expected = [context.decode(token) for context, token in zip(apart, (5, 6, 7), strict=True)]
        np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=tolerance)


def test_the_int8_bundle_is_close_to_the_float_one(exported: Exported) -> None:
    ids = token_ids()[0].tolist()
    models = [open_bundle(folder, threads=1) for folder in (exported.fp32, exported.int8)]
    p, q = (torch.from_numpy(m.logits(ids)).double().log_softmax(-1) for m in models)
    kl = float((p.exp() * (p - q)).sum(-1).median())
    assert kl <= RANDOM_INT8_MEDIAN_KL, f"KL divergence {kl:.3g}"
    if models[0].manifest.model.moe_layers:
        a, b = (m.routing(ids).expert_ids for m in models)
        assert (a[..., :, None] == b[..., None, :]).any(-1).mean() >= RANDOM_INT8_AGREEMENT


def test_the_fidelity_report_starts_from_the_model_of_transformers(exported: Exported) -> None:
    report = open_bundle(exported.int8, threads=1).manifest.fidelity
    assert report is not None
    _, ids = fidelity_windows(read_characters(), None, 192, window=report["window"])
    logits = run(exported.oracle, ids)[0].double()
    nll = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    assert report["perplexity_reference"] == pytest.approx(math.exp(nll), rel=REPORTED)


def test_the_fidelity_report_measures_the_int8_bundle(exported: Exported) -> None:
    both = [open_bundle(folder, threads=1) for folder in (exported.fp32, exported.int8)]
    report = both[1].manifest.fidelity
    assert report is not None
    _, windows = fidelity_windows(read_characters(), None, 192, window=report["window"])
    divergences = []
    for ids in windows.tolist():
        p, q = (torch.from_numpy(m.logits(ids)).double().log_softmax(-1) for m in both)
        divergences.append((p.exp() * (p - q)).sum(-1).mean())
    ratio = torch.stack(divergences).mean().item() / report["kl_mean"]
    assert 1 / FIDELITY_EMULATION <= ratio <= FIDELITY_EMULATION


@pytest.mark.parametrize("name", list(CASES))
def test_the_published_config_is_accepted(name: str) -> None:
    published = PUBLISHED | dict(CASES[name].published)
    config = ModelConfig.from_hf(published)
    for key in ("hidden_size", "vocab_size", "kv_lora_rank", "rms_norm_eps"):
        assert getattr(config, key) == published[key]
    layers = CASES[name].published_layers
    if layers is None:
        layers = published["num_hidden_layers"], 0
    if CASES[name].published_layers is None and config.is_moe:
        layers = layers[0], layers[0] - published["first_k_dense_replace"]
    assert (config.num_hidden_layers, len(config.moe_layers)) == layers


def test_every_family_has_a_row() -> None:
    covered = {CASES[name].published["model_type"] for name in CASES}
    assert {family.model_types[0] for family in families().values()} <= {
        families()[model_type].model_types[0] for model_type in covered
    }
