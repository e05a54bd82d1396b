"""The bundle contract: file names, graph inputs and outputs, and the manifest.

Standard library only: the exporter writes what is described here and the runtime reads it.

Shape legend, used as suffixes and in docstrings everywhere in the project:

    B batch (1)            T new tokens            S cached tokens, the new ones included
    D hidden_size          H num_attention_heads   C kv_lora_rank
    R qk_rope_head_dim     N qk_nope_head_dim      V v_head_dim
    E n_routed_experts     K num_experts_per_tok   G n_group
    F expert width         W vocab_size            L q_lora_rank

Graph inputs and outputs (float32 unless said otherwise):

    decoder.onnx  input_ids int64 [B,T], position_ids int64 [B,T], cache.{l} [B,S,C+R]
                  -> hidden [B,T,D] (after the final norm), cache_out.{l} [B,S,C+R] and, for each
                     MoE layer, expert_ids.{l} int64 [B,T,K], expert_weights.{l} [B,T,K]
    batch.onnx    as decoder.onnx, for T tokens of several contexts: slot_rows int64 [8] says which
                  slots they are in, in order (1, or 0 for an unused slot); slot i has caches of
                  its own, cache.{l}.{i} and cache_out.{l}.{i}
    head.onnx     hidden [B,T,D] -> logits [B,T,W]
    mtp.onnx      input_ids int64 [B,T], position_ids int64 [B,T], hidden [B,T,D], cache.0 [B,S,C+R]
                  -> hidden_out [B,T,D], cache_out.0 [B,S,C+R], expert_ids.0, expert_weights.0

A cache is the state of a layer with latent attention; graphs/layer_state.py says what holds for the
state of any layer. A cache input is the prefix of a buffer with room to grow: rows 0..S-T-1 hold
earlier tokens, the graph writes rows S-T..S-1. Bind one buffer as ``cache.{l}`` and
``cache_out.{l}``: it is updated in place. Each row is the normalised latent (C values) followed by
the rotated rope key (R values).

decoder.float16.onnx, batch.float16.onnx and mtp.float16.onnx are the same graphs with float16
caches. In decoder.int8.onnx, batch.int8.onnx and mtp.int8.onnx ``cache.{l}`` is uint8 [B,S,C], the
latent in blocks, and ``cache_scales.{l}`` float32 [B,S,C/block] and ``cache_rope.{l}`` float16
[B,S,R] stand beside it, with outputs ``cache_scales_out.{l}`` and ``cache_rope_out.{l}``
(graphs/cache_types.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal.graphs.cache_types import CACHE_TYPES, graph_role

FORMAT_VERSION = 1
OP_SET_VERSION = 1
OP_DOMAIN = "shoal"
ONNX_OPSET = 24

OPSET_IMPORTS: Mapping[str, int] = {"": ONNX_OPSET, "com.microsoft": 1, OP_DOMAIN: OP_SET_VERSION}
"""What a graph with shoal ops and their functions has to import: domain -> version."""

IR_VERSION = 11
"""The ONNX ir_version of such a graph."""

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.bin"
GRAPH_FILES = {
    role: f"{role}.onnx"
    for role in (
        *(graph_role("decoder", cache_type) for cache_type in CACHE_TYPES),
        *(graph_role("batch", cache_type) for cache_type in CACHE_TYPES),
        "head",
        *(graph_role("mtp", cache_type) for cache_type in CACHE_TYPES),
    )
}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)

BATCH_SLOTS = 8
"""Contexts that one step of batch.onnx reads at most: as many rows as a short step may have."""

SLOT_ROWS_INPUT = "slot_rows"

WEIGHT_ALIGNMENT_BYTES = 4096
"""Every tensor in weights.bin starts at a multiple of this: a page on every supported machine."""


MAX_DIMENSIONS = 8
"""Of any tensor in any file that is read. Real ones have four at most; more cost time to look at,
and 65 cannot be in memory."""


def expert_ids_output(layer: int) -> str:
    """Name of the graph output with the routed expert ids of ``layer``."""
    return f"expert_ids.{layer}"


def expert_weights_output(layer: int) -> str:
    """Name of the graph output with the routed expert weights of ``layer``."""
    return f"expert_weights.{layer}"


def in_slot(name: str, slot: int) -> str:
    """Name of a layer's state, as the decoder graph has it, in one slot of a batch graph."""
    return f"{name}.{slot}"
