"""Latent caches of every type: what is kept, what follows, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tests.tolerances import CACHE_ROUNDING_KL

from shoal.graphs.cache_types import CACHE_TYPES, cache_block_size
from shoal.graphs.errors import BundleError, InputError
from shoal.graphs.fidelity import shipped_text
from shoal.graphs.footprint import cache_token_bytes
from shoal.graphs.manifest import checksum
from shoal.graphs.manifest_reader import read_manifest
from shoal.runtime import open_bundle

pytestmark = pytest.mark.dependencies

IDS = list(range(40, 640, 11))
KERNELS = ("portable", "auto")


@pytest.fixture(scope="module", params=[(c, k) for c in CACHE_TYPES for k in KERNELS], ids=str)
def model(request, int8_bundle):
    cache, kernels = request.param
    return open_bundle(int8_bundle, threads=1, cache=cache, kernels=kernels)


def test_a_token_takes_the_bytes_of_the_formula(model):
    info = model.manifest.model
    context = model.new_context()
    context.reserve(100)
    expected = cache_token_bytes(
        info.kv_lora_rank, info.qk_rope_head_dim, info.num_hidden_layers, model.cache_type
    )
    assert context.layer_state.bytes_per_token == expected
    assert context.nbytes == 100 * expected


def test_what_follows_a_rewind_a_fork_a_file_and_growth_has_the_same_bits(model, tmp_path):
    context = model.new_context()
    drafter = model.drafts.start(context)
    context.prefill(IDS)
    drafter.propose(context.position, 7, 2)
    expected = [context.decode(token) for token in (7, 8, 9)]
    context.rewind(len(IDS))
    fork = context.fork()
    context.save(tmp_path / "a.ctx")
    restored = model.load_context(tmp_path / "a.ctx")
    grown = context.fork()
    grown.reserve(1000)
    for other in (context, fork, restored, grown):
        found = [other.decode(token) for token in (7, 8, 9)]
        np.testing.assert_array_equal(np.stack(found), np.stack(expected))
    np.testing.assert_equal(restored.layer_state.rows(), context.layer_state.rows())


def test_drafts_do_not_change_what_is_said(model):
    ids = [*IDS, *IDS]  # portable kernels draft from 80 tokens on
    plain = list(model.generate(ids, max_new_tokens=24, stop_tokens=()))
    generation = model.generate(ids, max_new_tokens=24, stop_tokens=(), draft=2)
    assert list(generation) == plain
    assert generation.draft_stats.rounds > 0


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_rounding_the_cache_hardly_changes_predictions(fp32_bundle, cache):
    """Measured on float weights, where nothing else is rounded."""
    whole, rounded = (
        open_bundle(fp32_bundle, threads=1, cache=kind) for kind in ("float32", cache)
    )
    ids = whole.encode(shipped_text())[:300]
    expected, found = (one.logits(ids).astype(np.float64) for one in (whole, rounded))
    assert not np.array_equal(expected, found), "the cache was not rounded"
    logs = [each - np.log(np.exp(each).sum(axis=1, keepdims=True)) for each in (expected, found)]
    divergence = np.median((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1))
    assert divergence <= CACHE_ROUNDING_KL[cache], f"median KL divergence {divergence:.2e}"


def test_a_context_with_another_type_of_cache_is_refused(int8_bundle, tmp_path):
    models = [open_bundle(int8_bundle, threads=1, cache=c) for c in ("int8", "float16")]
    context = models[0].new_context()
    context.prefill(IDS)
    context.save(tmp_path / "a.ctx")
    with pytest.raises(InputError, match="cache float16, found 'int8'; open the bundle with that"):
        models[1].load_context(tmp_path / "a.ctx")


def test_an_unknown_type_and_a_bundle_without_its_graphs_are_refused(fp32_bundle, tmp_path):
    with pytest.raises(InputError, match="cache must be float32, float16, int8, found 'int4'"):
        open_bundle(fp32_bundle, cache="int4")  # type: ignore[arg-type]
    older = shutil.copytree(fp32_bundle, tmp_path / "older")
    content = json.loads((older / "manifest.json").read_text())
    for role in ("decoder.int8", "mtp.int8"):
        del content["files"][content["graphs"].pop(role)]
    content["manifest_sha256"] = checksum(content)
    (older / "manifest.json").write_text(json.dumps(content))
    assert open_bundle(older, threads=1, cache="float16").cache_type == "float16"
    with pytest.raises(BundleError, match="has no graphs with int8 caches: it is of an older"):
        open_bundle(older, cache="int8")


def test_a_manifest_with_half_the_graphs_of_a_type_is_refused(fp32_bundle):
    content = json.loads((fp32_bundle / "manifest.json").read_text())
    del content["graphs"]["mtp.int8"]
    content["manifest_sha256"] = checksum(content)
    with pytest.raises(BundleError, match="graphs must be complete for int8 caches"):
        read_manifest(json.dumps(content), "m")


def test_blocks_divide_the_latent():
    assert [cache_block_size(rank) for rank in (512, 128, 96, 48, 16)] == [64, 64, 32, 16, 16]
    assert [cache_block_size(rank) for rank in (8, 40)] == [None, None]


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "9"])
def test_a_limit_that_is_no_number_of_tokens_is_refused(fp32_bundle, limit):
    with pytest.raises(InputError, match="max_context must be a whole number from 1 on"):
        open_bundle(fp32_bundle, max_context=limit)


def test_a_context_can_be_limited_and_go_beyond_what_the_model_was_made_for(fp32_bundle):
    with pytest.raises(InputError, match="31 tokens are more than the model's 30"):
        open_bundle(fp32_bundle, max_context=30).logits([5] * 31)
    with pytest.warns(UserWarning, match="max_context 2600 is more than the model was made for"):
        model = open_bundle(fp32_bundle, threads=1, max_context=2600)
    beyond = model.manifest.model.max_position_embeddings + 500
    context = model.new_context()
    assert np.isfinite(context.prefill([5 + n % 4000 for n in range(beyond)])).all()
    assert (context.position, model.max_context) == (beyond, 2600)


def test_a_saved_context_that_is_too_long_is_refused(fp32_bundle, tmp_path):
    context = open_bundle(fp32_bundle, threads=1).new_context()
    context.prefill(IDS)
    context.save(tmp_path / "a.ctx")
    short = open_bundle(fp32_bundle, threads=1, max_context=20)
    with pytest.raises(InputError, match="55 tokens are more than the model's 20"):
        short.load_context(tmp_path / "a.ctx")
