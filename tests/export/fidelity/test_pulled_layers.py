"""Layers whose weights are pulled, against the layers they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.export.tracing.small_templates import small_config
from tests.tolerances import FLOAT32_SUMS
from torch import Tensor

from shoal.export.fidelity.measured_pass import PassingLayer
from shoal.export.fidelity.pulled_layers import pulled_layer
from shoal.export.fidelity.sparse_layer import RoutedTokens
from shoal.export.model.decoder_layer import DecoderLayer
from shoal.export.model.ops import fake_quantize
from shoal.export.model.wiring import grow_state, layer_blocks, run_block, walk
from shoal.export.transfer import Each, Encode
from shoal.graphs.parameters import Parameter, Place
from shoal.graphs.recipes import WeightFormat

B, T = 2, 7


class GivenWeights:
    """The weights of two layers, pulled a few rows at a time; a ``LayerWeights``."""

    def __init__(self, reference: Mapping[str, Tensor], served: Mapping[str, Tensor]) -> None:
        self._both = reference, served
        self.pulled: list[str] = []
        self.encoders: dict[str, Encode | None] = {}

    def whole(self, name: str) -> tuple[Tensor, Tensor]:
        reference, served = self._both
        return reference[name], served[name]

    def pull(self, name: str, each: Each, encode: Encode | None = None) -> None:
        self.pulled.append(name)
        self.encoders[name] = encode
        reference, served = self.whole(name)
        for start in range(0, len(reference), 5):
            rows = slice(start, start + 5)
            each(start, reference[rows], served[rows])


def random_layer(family: str, layer: int, seed: int) -> DecoderLayer:
    config = small_config(family)
    module = DecoderLayer(config, layer_blocks(config, layer))
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=generator)
    return module.requires_grad_(False)


def flow_of(family: str, layer: DecoderLayer, num_windows: int) -> dict[str, Tensor]:
    config = small_config(family)
    generator = torch.Generator().manual_seed(3)
    taken = {name for block in layer.blocks for name in block.takes} - {"cache"}
    half = config.qk_rope_head_dim // 2
    flow = {name: torch.randn(1, T, half, generator=generator) for name in ("cos", "sin")}
    for name in sorted(taken - flow.keys()):
        flow[name] = torch.randn(num_windows, T, config.hidden_size, generator=generator)
    return flow


def weight_order(layer: DecoderLayer) -> list[str]:
    """Names as they lie in weights.bin, where routed experts come last in each block."""
    names = [name for name, _ in layer.named_parameters()]
    routed = {name for name in names if Parameter(place=Place.LAYER, part=name).is_routed_experts}
    return [*(n for n in names if n not in routed), *(n for n in names if n in routed)]


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("deepseek_v3", 0),
        ("deepseek_v3", 1),
        ("axk1", 1),
        ("longcat_flash", 0),
        ("longcat_flash", 1),
        ("minicpm3", 0),
    ],
)
@torch.inference_mode()
def test_each_stream_goes_through_the_layer_with_its_own_weights(family: str, layer: int) -> None:
    config = small_config(family)
    modules = [random_layer(family, layer, seed) for seed in (1, 2)]
    # What is not quantized is the same in both streams.
    shared = {
        name: value
        for name, value in modules[0].state_dict().items()
        if Parameter(place=Place.LAYER, part=name).kind is None
    }
    modules[1].load_state_dict(shared, strict=False)
    reference, served = (module.state_dict() for module in modules)
    weights = GivenWeights(reference, served)
    latent = {
        name: WeightFormat(block_size=16)
        for name in reference
        if Parameter(place=Place.LAYER, part=name).kind == "attention_latent"
    }
    blocks = layer_blocks(config, layer)
    both = pulled_layer(config, blocks, weights, latent, num_measured=B)
    flow = flow_of(family, both, 2 * B)
    halves = [
        {n: v if len(v) == 1 else v.chunk(2)[side] for n, v in flow.items()} for side in (0, 1)
    ]
    state = grow_state(blocks, None, T, batch=2 * B)
    _, given = walk(blocks, flow, state, lambda block, v: run_block(block.experts_last(), both, v))
    for side, (module, half) in enumerate(zip(modules, halves, strict=True)):
        _, expected = module(half, grow_state(blocks, None, T, batch=B))
        assert flow.keys() == half.keys()
        for name in flow.keys() - {"cos", "sin"}:
            found, wanted = flow[name].chunk(2)[side], half[name]
            error = (found - wanted).abs().max() / wanted.abs().max()
            assert error <= FLOAT32_SUMS, f"{name} of stream {side}: {error:.3g}"
        for name in expected:
            torch.testing.assert_close(given[name].chunk(2)[side], expected[name])
    order = weight_order(modules[0])
    assert weights.pulled == sorted(weights.pulled, key=order.index)
    matrices = [name for name in order if Parameter(place=Place.LAYER, part=name).kind is not None]
    assert weights.pulled == [name for name in matrices if name not in latent]


def tokens(**overrides: Any) -> RoutedTokens:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 4, (2 * B, T, 2), generator=generator)
    values: dict[str, Any] = {
        "x": torch.randn(2 * B, T, 32, generator=generator),
        "ids": ids,
        "shares": torch.rand(ids.shape, generator=generator),
        "stored": WeightFormat(bits=4, block_size=16),
        "num_measured": 1,
    }
    return RoutedTokens(**(values | overrides))


def test_served_experts_round_the_inputs_of_both_matrices() -> None:
    generator = torch.Generator().manual_seed(5)
    gate_up, served = (torch.randn(64, 32, generator=generator) for _ in range(2))
    given = tokens()
    reference, activated = given.activate(2, gate_up, served)
    for side, (found, weight) in enumerate(((reference, gate_up), (activated, served))):
        x = given.x.chunk(2)[side][(given.ids.chunk(2)[side] == 2).any(-1)]
        both = (fake_quantize(x, 16) if side else x) @ weight.T
        inner = torch.nn.functional.silu(both[:, 0::2]) * both[:, 1::2]
        torch.testing.assert_close(found, fake_quantize(inner, 16) if side else inner)


def test_calibration_sees_the_served_windows_behind_the_measured_ones() -> None:
    given = tokens()
    assert given.are_calibrating
    assert not tokens(num_measured=B).are_calibrating
    x, ids = (part[B + 1 :] for part in (given.x, given.ids))
    expected = fake_quantize(x[(ids == 1).any(-1)], 16)
    torch.testing.assert_close(given.calibration_inputs(1), expected)
    measured = (given.ids[B : B + 1] == 1).any(-1).sum()
    assert given.num_measured_tokens(1) == measured


class Moved:
    """Stands in for a ``Transfer``: remembers what was moved."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def move(self, name: str, *, each: Each | None = None, encode: Encode | None = None) -> None:
        self.names.append(name if each is None else f"{name} shown")


def test_parameters_are_moved_in_order_around_those_that_are_pulled() -> None:
    moved, names = Moved(), [f"layers.2.{part}" for part in "abcde"]
    layer = PassingLayer(moved, 2, names)  # type: ignore[arg-type]
    layer.pull("b", lambda start, rows, served: None)
    assert moved.names == ["layers.2.a", "layers.2.b shown"]
    layer.pull("d", lambda start, rows, served: None)
    layer.move_rest()
    assert [name.removesuffix(" shown") for name in moved.names] == names
    with pytest.raises(AssertionError, match="was pulled after what lies behind it"):
        layer.pull("c", lambda start, rows, served: None)
