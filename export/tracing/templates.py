"""The modules that a model is stamped from: which there are, what goes in and what comes out."""

from __future__ import annotations

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.layers import Embedding, Linear, RMSNorm
from shoal.export.model.mtp import MtpModule
from shoal.export.model.rope import RotaryEmbedding
from shoal.export.model.transformer import DecoderLayer
from shoal.export.tracing.trace import Part, Template, trace


def trace_templates(config: ModelConfig, *, with_mtp: bool) -> dict[str, Template]:
    """Trace what a model of this config needs.

    Args:
        config: of the model.
        with_mtp: whether the multi-token-prediction module is wanted.

    Returns:
        "embedding", "rope", "norm", "head"; "attention", the first half of every layer; "dense" and
        "experts", the second half of those that have them; "fusion", the entry of the
        multi-token-prediction module.
    """
    kinds = {config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)}
    if with_mtp:
        kinds.add(config.is_moe)
    parts = _ends(config) | {"attention": _attention(config)}
    if False in kinds:
        parts["dense"] = _dense(config)
    if True in kinds:
        parts["experts"] = _experts(config)
    if with_mtp:
        parts["fusion"] = _fusion(config)
    return trace(parts)


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


def _attention(config: ModelConfig) -> Part:
    half = config.qk_rope_head_dim // 2
    return Part(
        build=lambda: DecoderLayer(config, is_moe=False),
        call=DecoderLayer.attention_block,
        inputs={
            "hidden": (1, "T", config.hidden_size),
            "cos": (1, "T", half),
            "sin": (1, "T", half),
            "cache": (1, "S", config.cache_row_size),
        },
        outputs=("hidden_out", "cache_out"),
    )


def _dense(config: ModelConfig) -> Part:
    hidden = (1, "T", config.hidden_size)
    return Part(
        build=lambda: DecoderLayer(config, is_moe=False),
        call=DecoderLayer.feed_forward_block,
        inputs={"hidden": hidden} | ({"late": hidden} if config.has_late_experts else {}),
        outputs=("hidden_out",),
    )


def _experts(config: ModelConfig) -> Part:
    late = ("late_out",) if config.has_late_experts else ()
    return Part(
        build=lambda: DecoderLayer(config, is_moe=True),
        call=DecoderLayer.feed_forward_block,
        inputs={"hidden": (1, "T", config.hidden_size)},
        outputs=("hidden_out", "expert_ids", "expert_weights", *late),
    )


def _fusion(config: ModelConfig) -> Part:
    hidden = (1, "T", config.hidden_size)
    return Part(
        build=lambda: MtpModule(config),
        call=MtpModule.fuse,
        inputs={"embedded": hidden, "hidden": hidden},
        outputs=("fused",),
    )
