"""The trained tiny model: its bundles against transformers and the reference modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from tests.export.oracle import run
from tests.tolerances import FIDELITY_EMULATION, INT8_MEAN_KL, TINY_LOGITS
from torch import Tensor

from shoal.export.fidelity.text import fidelity_windows
from shoal.export.model.load import load_model
from shoal.export.model.transformer import CausalLM
from shoal.export.model.wiring import grow_state, mtp_blocks
from shoal.export.tokenizer.files import read_tokenizer
from shoal.graphs.contract import GRAPH_FILES, WEIGHT_ALIGNMENT_BYTES, WEIGHTS_FILE
from shoal.runtime import Model, open_bundle
from shoal.runtime.bundle import Bundle

PROMPTS = (
    "It is a truth universally acknowledged, that",
    "Once upon a time there was",
    "The",
    "CHAPTER II.\n\n",
)
NEW_TOKENS = 64


@pytest.fixture(scope="module")
def oracle(tiny_checkpoint: Path) -> Any:
    from transformers import DeepseekV3ForCausalLM

    return DeepseekV3ForCausalLM.from_pretrained(
        tiny_checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> CausalLM:
    return load_model(tiny_checkpoint)


@pytest.fixture(scope="module")
def float_model(fp32_bundle: Path) -> Model:
    return open_bundle(fp32_bundle, threads=1)


@pytest.fixture(scope="module")
def int8_model(measured_bundle: Path) -> Model:
    return open_bundle(measured_bundle, threads=1)


@pytest.fixture(scope="module")
def windows(tiny_checkpoint: Path) -> Tensor:
    """The windows the fidelity report is measured on, int64 [B,T]."""
    path = tiny_checkpoint / "tokenizer.json"
    _, ids_BT = fidelity_windows(read_tokenizer(path.read_bytes(), path), None, 2048)
    return ids_BT


def test_float_logits_are_those_of_transformers_over_a_long_text(
    oracle: Any,
    float_model: Model,
    windows: Tensor,
    record_property: Callable[[str, object], None],
) -> None:
    ids = windows[:, 1:].flatten()[:768]
    expected, _ = run(oracle, ids[None])
    difference = np.abs(float_model.logits(ids.tolist()) - expected[0].numpy())
    place = [int(n) for n in np.unravel_index(difference.argmax(), difference.shape)]
    found = f"logits differ by {difference.max():.3g} at most, at [position, token] {place}"
    print(found)  # pytest -rP shows it
    record_property("largest_logit_difference", float(difference.max()))
    assert difference.max() <= TINY_LOGITS, found


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_those_of_transformers(
    oracle: Any, float_model: Model, prompt: str
) -> None:
    ids = float_model.encode(prompt)
    new = list(float_model.generate(ids, max_new_tokens=NEW_TOKENS, stop_tokens=()))
    assert len(new) == NEW_TOKENS
    # If each token is the oracle's choice after those before it, the oracle generates the same.
    logits, _ = run(oracle, torch.tensor([ids + new[:-1]]))
    assert logits[0, len(ids) - 1 :].argmax(-1).tolist() == new


def test_float_routing_is_exactly_that_of_transformers_and_of_the_reference(
    oracle: Any, reference: CausalLM, float_model: Model, windows: Tensor
) -> None:
    ids = windows[:1]
    routing = float_model.routing(ids[0].tolist())
    states = reference.grow_states(None, ids.shape[1])
    with torch.inference_mode():
        _, _, expected = reference(ids, torch.arange(ids.shape[1])[None], states)
    _, chosen = run(oracle, ids)
    assert routing.layers == tuple(expected) == (1, 2, 3, 4)
    for index, layer in enumerate(routing.layers):
        np.testing.assert_array_equal(routing.expert_ids[index], expected[layer].expert_ids[0])
        np.testing.assert_array_equal(
            np.sort(routing.expert_ids[index]), chosen[index].sort().values
        )
        weights = expected[layer].expert_weights[0].numpy()
        np.testing.assert_allclose(routing.expert_weights[index], weights, rtol=0, atol=TINY_LOGITS)


def test_int8_is_as_faithful_as_required_and_as_its_report_says(
    float_model: Model, int8_model: Model, windows: Tensor
) -> None:
    report = int8_model.manifest.fidelity
    assert report is not None
    kl, same, shared = [], [], []
    for ids in windows.tolist():
        p, q = _log_probabilities(float_model, ids), _log_probabilities(int8_model, ids)
        kl.append((np.exp(p) * (p - q)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
        a, b = (model.routing(ids).expert_ids for model in (float_model, int8_model))
        shared.append((a[..., :, None] == b[..., None, :]).any(-1))
    figures = {
        "kl_mean": np.mean(kl),
        "top1_agreement": np.mean(same),
        "router_agreement": np.mean(shared),
    }
    assert figures["kl_mean"] <= INT8_MEAN_KL
    assert report["kl_mean"] <= INT8_MEAN_KL
    ratio = figures["kl_mean"] / report["kl_mean"]
    assert 1 / FIDELITY_EMULATION <= ratio <= FIDELITY_EMULATION
    for name in ("top1_agreement", "router_agreement"):
        disagreement = (1 - figures[name]) / (1 - report[name])
        assert 1 / FIDELITY_EMULATION <= disagreement <= FIDELITY_EMULATION, name


def _log_probabilities(model: Model, ids: list[int]) -> npt.NDArray[np.float64]:
    logits = model.logits(ids).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    normal: npt.NDArray[np.float64] = np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits - normal


def test_draft_of_the_float_bundle_is_that_of_the_reference(
    fp32_bundle: Path, reference: CausalLM, windows: Tensor
) -> None:
    hidden, expected = _reference_draft(reference, windows[0])
    outputs = _run_mtp(fp32_bundle, windows[0], hidden)
    error = np.abs(outputs["hidden_out"] - expected["hidden_out"]).max()
    assert error <= TINY_LOGITS, f"hidden states differ by {error:.3g} at most"
    error = np.abs(outputs["cache_out.0"] - expected["cache_out.0"]).max()
    assert error <= TINY_LOGITS, f"caches differ by {error:.3g} at most"
    np.testing.assert_array_equal(outputs["expert_ids.0"], expected["expert_ids.0"])


def test_draft_of_the_int8_bundle_prefers_the_same_tokens(
    measured_bundle: Path, reference: CausalLM, windows: Tensor
) -> None:
    hidden, expected = _reference_draft(reference, windows[0])
    outputs = _run_mtp(measured_bundle, windows[0], hidden)
    with torch.inference_mode():
        ours, theirs = (
            reference.head(torch.from_numpy(draft["hidden_out"])).argmax(-1)
            for draft in (outputs, expected)
        )
    assert (ours == theirs).double().mean() >= 0.95


def _reference_draft(reference: CausalLM, ids: Tensor) -> tuple[Tensor, dict[str, np.ndarray]]:
    """The main model's hidden states [1,T-1,D] and what the reference module drafts from them."""
    count = len(ids) - 1
    states = reference.grow_states(None, count)
    positions = torch.arange(count)[None]
    with torch.inference_mode():
        hidden, _, _ = reference(ids[None, :-1], positions, states)
        cos, sin = reference.rotary(positions)
        embedded = reference.embed_tokens(ids[None, 1:])
        state = grow_state(mtp_blocks(reference.config), None, count)
        drafted, state, chosen = reference.mtp[0](embedded, hidden, cos, sin, state)
    found = {"hidden_out": drafted, "cache_out.0": state["cache"]}
    found |= {f"{name}.0": value for name, value in chosen.items()}
    return hidden, {name: value.numpy() for name, value in found.items()}


def _run_mtp(bundle: Path, ids: Tensor, hidden: Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(bundle / "mtp.onnx")
    names = [output.name for output in session.get_outputs()]
    count = len(ids) - 1
    width = next(i.shape[-1] for i in session.get_inputs() if i.name == "cache.0")
    feeds = {
        "input_ids": ids[None, 1:].numpy(),
        "position_ids": np.arange(count)[None],
        "hidden": hidden.numpy(),
        "cache.0": np.zeros((1, count, width), np.float32),
    }
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("which", ["fp32_bundle", "measured_bundle"])
def test_graphs_hold_no_weights_and_share_one_page_aligned_file(
    which: str, request: pytest.FixtureRequest
) -> None:
    bundle = Bundle.open(request.getfixturevalue(which))
    places: dict[str, tuple[int, int]] = {}
    for name in bundle.manifest.graphs.values():
        assert bundle.path(name).stat().st_size < 200_000
        for tensor in onnx.load(bundle.path(name), load_external_data=False).graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                assert len(tensor.raw_data) <= 1024, f"{name} holds {tensor.name}"
                continue
            entry = {item.key: item.value for item in tensor.external_data}
            place = int(entry["offset"]), int(entry["length"])
            assert entry["location"] == WEIGHTS_FILE
            assert place[0] % WEIGHT_ALIGNMENT_BYTES == 0
            assert places.setdefault(tensor.name, place) == place, f"{tensor.name} is stored twice"
    listed = {name: (info.offset, info.size) for name, info in bundle.manifest.tensors.items()}
    assert places == listed


def test_embedding_and_head_are_stored_once_for_decoder_and_draft(measured_bundle: Path) -> None:
    manifest = Bundle.open(measured_bundle).manifest
    tables = [name for name, info in manifest.tensors.items() if info.shape[0] == 4096]
    assert sorted(name for name in tables if not name.endswith("_scales")) == [
        "embed_tokens.weight",
        "lm_head.weight",
    ]
    draft = onnx.load(measured_bundle / "mtp.onnx", load_external_data=False)
    assert "embed_tokens.weight" in {tensor.name for tensor in draft.graph.initializer}


@pytest.mark.parametrize("which", ["fp32_bundle", "measured_bundle"])
def test_graphs_pass_the_onnx_checker(which: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.open(request.getfixturevalue(which))
    assert set(bundle.manifest.graphs) == set(GRAPH_FILES)
    for role in bundle.manifest.graphs:
        # Shapes too, where onnx knows all ops: those of com.microsoft it does not.
        full = bundle.manifest.weights == "fp32" and not role.endswith(".int8")
        onnx.checker.check_model(str(bundle.graph_path(role)), full_check=full)


def test_exporting_twice_gives_the_same_bytes(
    measured_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The second time by the command, in another process with another hash seed, elsewhere."""
    again = tmp_path / "elsewhere" / "again"
    command = [sys.executable, "-m", "shoal.runtime.commands.cli", "export", "--json"]
    done = subprocess.run(
        [*command, str(tiny_checkpoint), str(again)],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fidelity"]["kl_mean"] > 0
    names = sorted(path.name for path in measured_bundle.iterdir())
    assert sorted(path.name for path in again.iterdir()) == names
    for name in names:
        same = (again / name).read_bytes() == (measured_bundle / name).read_bytes()
        assert same, f"{name} differs between two exports"


@pytest.mark.parametrize("which", ["fp32_bundle", "measured_bundle"])
def test_decoding_copies_no_cache(
    which: str,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """onnxruntime warns, on the process's own stderr, of every cache that it had to copy."""
    monkeypatch.setattr("shoal.runtime.engine.session._LOG_FATAL_ONLY", 2)
    model = open_bundle(request.getfixturevalue(which), threads=1)
    capfd.readouterr()
    context = model.new_context()
    context.prefill([5, 6, 7])
    for token in range(8, 12):
        context.decode(token)
    assert capfd.readouterr().err == ""
