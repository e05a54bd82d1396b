"""Blocks and their walk, on modules whose results can be checked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.export.family_cases import CASES, PUBLISHED
from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.wiring import (
    TOKENS,
    Block,
    Branch,
    State,
    grow_state,
    layer_blocks,
    run_block,
    states_of,
    walk,
)

COUNT = State(name="count", shape=(1,))
SEEN = State(name="seen", shape=(TOKENS, 1))


class Counter(nn.Module):
    """Puts out a factor times its input; its states count the tokens and keep their inputs."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, count: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        past = seen.shape[1] - x.shape[1]
        seen = torch.cat([seen[:, :past], x], dim=1)
        return self.factor * x, count + x.shape[1], seen


class Times(nn.Module):
    """Puts out a factor times its input."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def build(config: ModelConfig) -> nn.Module:
    raise AssertionError("the tests make their modules themselves")


REMEMBERS = Branch(module="a", build=build, states=(COUNT, SEEN))
LATE = Branch(module="b", build=build, joins="late")
PLAIN = Branch(module="c", build=build)
BLOCKS = (
    Block(name="first", norm="norm", branches=(REMEMBERS, LATE)),
    Block(name="second", norm="norm", branches=(PLAIN,), adds=("late",)),
)


def layer() -> nn.Module:
    module = nn.Module()
    module.norm, module.a, module.b, module.c = Times(0.5), Counter(2.0), Times(100.0), Times(4.0)
    return module


def test_a_block_names_what_it_takes_and_gives() -> None:
    first, second = BLOCKS
    assert first.takes == ("hidden", "count", "seen")
    assert first.gives == ("hidden", "count", "seen", "late")
    assert second.takes == ("hidden", "late")
    assert second.gives == ("hidden",)


def test_contributions_join_where_their_branches_say() -> None:
    modules, flow = layer(), {"hidden": torch.tensor([[[8.0]]])}
    state = grow_state(BLOCKS, None, 1)
    new_state, given = walk(BLOCKS, flow, state, lambda b, values: run_block(b, modules, values))
    # 8 + 2 * 4 = 16 after the first block, then 16 + 4 * 8 + 100 * 4.
    assert flow == {"hidden": torch.tensor([[[448.0]]])}
    assert given == {}
    assert {name: value.tolist() for name, value in new_state.items()} == {
        "count": [[1.0]],
        "seen": [[[4.0]]],
    }


def test_a_contribution_may_wait_for_a_later_layer() -> None:
    modules, flow = layer(), {"hidden": torch.tensor([[[8.0]]])}
    for block in BLOCKS:
        state = grow_state((block,), None, 1)
        walk((block,), flow, state, lambda b, values: run_block(b, modules, values))
        assert ("late" in flow) == (block is BLOCKS[0])
    assert flow["hidden"].item() == 448.0


def test_a_state_of_fixed_size_keeps_it_and_one_with_rows_grows() -> None:
    modules, state = layer(), None
    for num_tokens in (3, 2):
        state = grow_state(BLOCKS, state, num_tokens, batch=2)
        assert state["count"].shape == (2, 1)
        flow = {"hidden": torch.ones(2, num_tokens, 1)}
        state, _ = walk(BLOCKS, flow, state, lambda b, values: run_block(b, modules, values))
    assert state is not None
    assert state["count"].tolist() == [[5.0], [5.0]]
    assert state["seen"].shape == (2, 5, 1)
    assert states_of(BLOCKS) == (COUNT, SEEN)


def test_the_order_of_the_weights_puts_branches_with_experts_last() -> None:
    experts = replace(PLAIN, module="e", gives=("expert_ids", "expert_weights"))
    block = Block(name="block", norm="norm", branches=(experts, PLAIN, LATE))
    assert [branch.module for branch in block.experts_last().branches] == ["c", "b", "e"]


@pytest.mark.parametrize("name", list(CASES))
def test_the_layers_of_a_family_fit_together(name: str) -> None:
    """What a block takes is there, and nothing waits when the last layer is done."""
    config = ModelConfig.from_hf(PUBLISHED | dict(CASES[name].published))
    flow = dict.fromkeys(("hidden", "cos", "sin"), "value")
    for index in range(config.num_hidden_layers):
        blocks = layer_blocks(config, index)
        state = {kind.name: "state" for kind in states_of(blocks)}
        _, given = walk(blocks, flow, state, lambda block, values: list(block.gives))
        assert bool(given) == config.is_moe_layer(index)
    assert set(flow) == {"hidden", "cos", "sin"}
