"""The modules that a model is stamped from: which there are, what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.decoder_layer import DecoderLayer
from shoal.export.model.layers import Embedding, Linear, RMSNorm
from shoal.export.model.mtp import MtpModule
from shoal.export.model.rope import RotaryEmbedding
from shoal.export.model.wiring import Block, layer_blocks, mtp_blocks, run_block
from shoal.export.tracing.trace import Part, Template, trace


@lru_cache(maxsize=4)  # most of what exporting a small model takes; recipes share templates
def trace_templates(config: ModelConfig, *, with_mtp: bool) -> dict[str, Template]:
    """Trace what a model of this config needs, once for exports one after another.

    Args:
        config: of the model.
        with_mtp: whether the multi-token-prediction module is wanted.

    Returns:
        "embedding", "rope", "norm", "head"; every block of the layers under its own name; and
        "fusion", the entry of the multi-token-prediction module.
    """
    blocks: dict[str, Block] = {}
    for block in _blocks(config, with_mtp):
        known = blocks.setdefault(block.name, block)
        assert known == block, f"two blocks are called {block.name}"
    # In the order of their names, so that the graphs do not depend on which layer comes first.
    parts = _ends(config) | {name: _block(config, blocks[name]) for name in sorted(blocks)}
    if with_mtp:
        parts["fusion"] = _fusion(config)
    return trace(parts)


def _blocks(config: ModelConfig, with_mtp: bool) -> Iterator[Block]:
    for layer in range(config.num_hidden_layers):
        yield from layer_blocks(config, layer)
    if with_mtp:
        yield from mtp_blocks(config)


def _ends(c: ModelConfig) -> dict[str, Part]:
    return {
        "embedding": Part(
            build=lambda: Embedding(c.vocab_size, c.hidden_size),
            inputs={"input_ids": (1, "T")},
            outputs=("hidden",),
            integer_inputs=True,
        ),
        "rope": Part(
            build=lambda: RotaryEmbedding(c),
            inputs={"position_ids": (1, "T")},
            outputs=("cos", "sin"),
            integer_inputs=True,
        ),
        "norm": Part(
            build=lambda: RMSNorm(c.hidden_size, c.rms_norm_eps),
            inputs={"x": (1, "T", c.hidden_size)},
            outputs=("y",),
        ),
        "head": Part(
            build=lambda: Linear(c.hidden_size, c.vocab_size),
            inputs={"x": (1, "T", c.hidden_size)},
            outputs=("logits",),
        ),
    }


def _block(config: ModelConfig, block: Block) -> Part:
    def call(layer: nn.Module, *values: Tensor) -> tuple[Tensor, ...]:
        return run_block(block, layer, values)

    hidden, half = config.hidden_size, config.qk_rope_head_dim // 2
    shapes: dict[str, tuple[int | str, ...]] = {"cos": (1, "T", half), "sin": (1, "T", half)}
    shapes |= {state.name: (1, *state.shape) for state in block.states}
    return Part(
        build=lambda: DecoderLayer(config, (block,)),
        call=call,
        inputs={name: shapes.get(name, (1, "T", hidden)) for name in block.takes},
        outputs=tuple(f"{name}_out" for name in block.gives),
    )


def _fusion(config: ModelConfig) -> Part:
    hidden = (1, "T", config.hidden_size)
    return Part(
        build=lambda: MtpModule(config),
        call=MtpModule.fuse,
        inputs={"embedded": hidden, "hidden": hidden},
        outputs=("fused",),
    )
