"""A layer may keep a state of fixed size instead of a cache: a made-up one, as a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.export.tracing.small_templates import small_config
from tests.tolerances import FLOAT32_LOGITS
from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.model import wiring
from shoal.export.model.transformer import Decoder
from shoal.export.model.wiring import Block, Blocks, Branch, State, Wiring
from shoal.export.model.wirings import sequential
from shoal.export.tracing.assemble import build_graphs

CHUNKS = (5, 1, 3)


class RunningSum(nn.Module):
    """Puts out the sum of all tokens so far, squashed; remembers the sum."""

    def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        sums = total[:, None] + x.cumsum(1)
        return sums.tanh(), total + x.sum(1)


def _running_sum(config: ModelConfig) -> RunningSum:
    return RunningSum()


def _layer(config: ModelConfig, layer: int) -> Blocks:
    attention, network = sequential.WIRING.layer(config, layer)
    if layer % 2 == 0:
        return attention, network
    total = State(name="total", shape=(config.hidden_size,))
    branch = Branch(module="self_attn", build=_running_sum, states=(total,))
    return Block(name="recurrent", norm="input_layernorm", branches=(branch,)), network


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """Of a dense model of three layers, the second of which is recurrent."""
    monkeypatch.setattr(wiring, "wiring_of", lambda config: Wiring(layer=_layer))
    return small_config("youtu")


def session_of(graph: onnx.ModelProto, model: Decoder, path: Path) -> onnxruntime.InferenceSession:
    """The graph, with the model's weights in it."""
    weights = model.state_dict()
    for tensor in graph.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name].numpy(), tensor.name))
    onnx.save(graph, str(path))
    return onnxruntime.InferenceSession(str(path))


def test_a_graph_hands_on_a_state_of_fixed_size_beside_caches(
    config: ModelConfig, tmp_path: Path
) -> None:
    model = Decoder(config).requires_grad_(False)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(1))
    graph = build_graphs(config, num_mtp_layers=0, recipe=None).models["decoder"]
    session = session_of(graph, model, tmp_path / "decoder.onnx")
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert shapes["total.1"] == [1, config.hidden_size]
    assert [name for name in shapes if name.startswith("cache.")] == ["cache.0", "cache.2"]

    ids = torch.randint(0, config.vocab_size, (1, sum(CHUNKS)), generator=torch.Generator())
    states, start = None, 0
    fed = {"total.1": np.zeros((1, config.hidden_size), np.float32)}
    fed |= {f"cache.{i}": np.zeros((1, 0, config.cache_row_size), np.float32) for i in (0, 2)}
    names = [value.name for value in session.get_outputs()]
    for count in CHUNKS:
        part, positions = ids[:, start : start + count], torch.arange(start, start + count)[None]
        states = model.grow_states(states, count)
        expected, states, _ = model(part, positions, states)
        room = ((0, 0), (0, count), (0, 0))
        fed = {n: np.pad(v, room) if n.startswith("cache.") else v for n, v in fed.items()}
        values = {"input_ids": part.numpy(), "position_ids": positions.numpy(), **fed}
        outputs = dict(zip(names, session.run(names, values), strict=True))
        fed = {name: outputs[name.replace(".", "_out.")] for name in fed}
        np.testing.assert_allclose(outputs["hidden"], expected, rtol=0, atol=FLOAT32_LOGITS)
        np.testing.assert_allclose(fed["total.1"], states[1]["total"], rtol=0, atol=FLOAT32_LOGITS)
        start += count
