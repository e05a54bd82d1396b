"""How a layer is wired: which blocks it has, what each takes from the flow and gives back to it.

Written once, walked by three: the reference model computes it, the graphs are stamped from it, and
the fidelity pass runs it while the weights pass by.

The *flow* is what goes from layer to layer, by name:

    hidden      [B,T,D]   the hidden state
    cos, sin    [B,T,R2]  of the tokens' positions
    late        [B,T,D]   (any other name) a contribution that joins ``hidden`` in a later block

A *layer* is a sequence of blocks. A *block* normalises the hidden state once, gives that copy to
its branches and adds what they put out to the hidden state. A *branch* is a module of the layer; it
may take more of the flow, and may keep a state: what it remembers of the tokens it has read.

Shapes: B batch, T new tokens, S tokens in the state (the new ones are the last T), D hidden,
R2 = qk_rope_head_dim / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TypeVar

import torch
from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig

HIDDEN = "hidden"
EXPERT_IDS, EXPERT_WEIGHTS = "expert_ids", "expert_weights"
TOKENS = "S"

Value = TypeVar("Value")
"""A tensor of the reference model, or a value of a graph under construction."""

LayerState = dict[str, Tensor]
"""The states of one layer, by name."""


@dataclass(frozen=True, kw_only=True)
class State:
    """A tensor that a layer keeps from one call to the next, float32 [B, *shape].

    Attributes:
        name: in the flow, and in the names of graph inputs and outputs (graphs/layer_state.py).
        shape: sizes behind the batch. ``TOKENS`` stands for one row of every token, of which the
            last T are free when the layer is called; without it the size never changes.
    """

    name: str
    shape: tuple[int | str, ...]

    def empty(self, batch: int) -> Tensor:
        """The state before the first token."""
        return torch.zeros(batch, *(0 if size == TOKENS else int(size) for size in self.shape))

    def with_room(self, state: Tensor, num_tokens: int) -> Tensor:
        """``state`` with free rows for new tokens, if it has rows."""
        if TOKENS not in self.shape:
            return state
        axis = 1 + self.shape.index(TOKENS)
        rows = list(state.shape)
        rows[axis] = num_tokens
        return torch.cat([state, state.new_zeros(rows)], dim=axis)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A module that reads a block's normalised copy and puts out a contribution [B,T,D].

    Attributes:
        module: its name in the layer, and so the beginning of its parameters' names.
        build: makes the module.
        takes: what it is given of the flow, behind the normalised copy.
        states: what it remembers; given behind ``takes``, returned behind ``gives``.
        gives: what it returns behind its contribution, for example the experts it has chosen.
        joins: what its contribution is added to: the hidden state at the end of this block, or
            a value of the flow that a later block ``adds``.
    """

    module: str
    build: Callable[[ModelConfig], nn.Module]
    takes: tuple[str, ...] = ()
    states: tuple[State, ...] = ()
    gives: tuple[str, ...] = ()
    joins: str = HIDDEN

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the module's arguments, behind the normalised copy."""
        return (*self.takes, *(state.name for state in self.states))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the module's results, behind its contribution."""
        return (*self.gives, *(state.name for state in self.states))

    @property
    def has_experts(self) -> bool:
        """Whether it chooses among routed experts."""
        return EXPERT_IDS in self.gives


@dataclass(frozen=True, kw_only=True)
class Block:
    """A norm, branches that read what it gives, and the sum of what they put out.

    Attributes:
        name: of the template that is traced; layers with equal blocks share it.
        norm: its name in the layer.
        branches: in the order of computation.
        adds: values of the flow that join the hidden state at the end, and are used up.
    """

    name: str
    norm: str
    branches: tuple[Branch, ...]
    adds: tuple[str, ...] = ()

    @property
    def takes(self) -> tuple[str, ...]:
        """What the block is given, by name."""
        inputs = dict.fromkeys(name for branch in self.branches for name in branch.inputs)
        return (HIDDEN, *inputs, *self.adds)

    @property
    def gives(self) -> tuple[str, ...]:
        """What the block returns, by name."""
        return (
            HIDDEN,
            *(name for branch in self.branches for name in branch.outputs),
            *(branch.joins for branch in self.branches if branch.joins != HIDDEN),
        )

    @property
    def states(self) -> tuple[State, ...]:
        """What its branches remember."""
        return tuple(state for branch in self.branches for state in branch.states)

    def experts_last(self) -> Block:
        """The block in the order of its weights in weights.bin."""
        return replace(self, branches=tuple(sorted(self.branches, key=lambda b: b.has_experts)))


Blocks = tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """The blocks of every layer of a model; each module of ``wirings`` has one as ``WIRING``.

    Attributes:
        layer: blocks of a layer of the main model, by its index.
        mtp: blocks of the layer in a multi-token-prediction module; None for models that have no
            such module.
    """

    layer: Callable[[ModelConfig, int], Blocks]
    mtp: Callable[[ModelConfig], Blocks] | None = None


def wiring_of(config: ModelConfig) -> Wiring:
    """How the layers of a model are wired."""
    wiring: Wiring = import_module(f"shoal.export.model.wirings.{config.wiring}").WIRING
    return wiring


def layer_blocks(config: ModelConfig, layer: int) -> Blocks:
    """What layer ``layer`` of the main model is made of."""
    return wiring_of(config).layer(config, layer)


def mtp_blocks(config: ModelConfig) -> Blocks:
    """What the layer of a multi-token-prediction module is made of."""
    mtp = wiring_of(config).mtp
    assert mtp is not None, f"{config.model_type} has no multi-token-prediction module"
    return mtp(config)


def states_of(blocks: Blocks) -> tuple[State, ...]:
    """All states of a layer."""
    return tuple(state for block in blocks for state in block.states)


def grow_state(
    blocks: Blocks, state: LayerState | None, num_tokens: int, *, batch: int = 1
) -> LayerState:
    """The state of a layer with room for new tokens; None starts a context of ``batch`` rows."""
    return {
        kind.name: kind.with_room(
            kind.empty(batch) if state is None else state[kind.name], num_tokens
        )
        for kind in states_of(blocks)
    }


def walk(
    blocks: Blocks,
    flow: dict[str, Value],
    state: dict[str, Value],
    run: Callable[[Block, list[Value]], Sequence[Value]],
) -> tuple[dict[str, Value], dict[str, Value]]:
    """Go through a layer.

    Args:
        blocks: of the layer.
        flow: what comes from the layer before; changed to what goes to the next one, so that a
            hidden state is freed as soon as another has taken its place.
        state: of the layer.
        run: computes a block (or stamps it): values of its ``takes`` to values of its ``gives``.

    Returns:
        The new state of the layer; and what else its branches give, such as the experts chosen.
    """
    own = dict(state)
    for block in blocks:
        results = run(block, [own[n] if n in own else flow[n] for n in block.takes])
        for name in block.adds:
            del flow[name]
        joined = {HIDDEN, *(branch.joins for branch in block.branches)}
        for name, value in zip(block.gives, results, strict=True):
            (flow if name in joined else own)[name] = value
    new_state = {state.name: own.pop(state.name) for state in states_of(blocks)}
    return new_state, own


def run_block(block: Block, layer: nn.Module, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Compute one block of a layer: the only place where contributions join the hidden state.

    Args:
        block: what to compute, in which order.
        layer: has the norm and the branches' modules.
        values: of ``block.takes``.

    Returns:
        The values of ``block.gives``.
    """
    flow = dict(zip(block.takes, values, strict=True))
    x = layer.get_submodule(block.norm)(flow[HIDDEN])
    contributions: list[Tensor] = []
    for branch in block.branches:
        found = layer.get_submodule(branch.module)(x, *(flow[name] for name in branch.inputs))
        contribution, *others = [found] if isinstance(found, Tensor) else found
        contributions.append(contribution)
        flow |= zip(branch.outputs, others, strict=True)
    for branch, contribution in zip(block.branches, contributions, strict=True):
        joins = branch.joins
        flow[joins] = flow[HIDDEN] + contribution if joins == HIDDEN else contribution
    for name in block.adds:
        flow[HIDDEN] = flow[HIDDEN] + flow[name]
    return tuple(flow[name] for name in block.gives)
