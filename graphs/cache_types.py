"""The types a latent cache can have, and the tensors a cache of each type is made of.

A latent cache is the state of a layer with latent attention, one row for each token; what holds for
the state of any layer is in graphs/layer_state.py. Standard library only. C kv_lora_rank, R
qk_rope_head_dim.

    float32  one tensor: the latent (C values) and the rotated rope key (R values)
    float16  the same, rounded to nearest
    int8     three tensors: the latent as uint8 with zero point 128, one float32 scale for
             ``cache_block_size`` neighbours, and the rope key in float16

In int8 the rope key keeps 16 bits because its rounding was measured to cost five times what the
latent's costs (median KL divergence on the shipped text, tiny-v3), for a ninth of the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from shoal.graphs.layer_state import state_input, state_output

CacheType = Literal["float32", "float16", "int8"]

CACHE_TYPES: tuple[CacheType, ...] = get_args(CacheType)

LARGEST_CACHE_BLOCK = 64
"""Latent values that share a scale, where C allows it. Whole latents of 128 values were measured
to have a third more error (median KL divergence, tiny-v3), blocks of 32 a quarter less."""

_VALUE_BYTES = {"float32": 4, "float16": 2, "uint8": 1}


@dataclass(frozen=True, kw_only=True)
class CachePart:
    """One tensor of a layer's latent cache: [1, S, width]."""

    name: str  # "cache", "cache_scales" or "cache_rope"
    dtype: Literal["float32", "float16", "uint8"]
    width: int  # values of one token

    @property
    def token_bytes(self) -> int:
        """Bytes of one token."""
        return self.width * _VALUE_BYTES[self.dtype]

    def input(self, layer: int) -> str:
        """Name of the graph input that holds this part of the cache of ``layer``."""
        return state_input(self.name, layer)

    def output(self, layer: int) -> str:
        """Name of the graph output that aliases ``input(layer)``."""
        return state_output(self.name, layer)


def cache_block_size(kv_lora_rank: int) -> int | None:
    """Latent values that share a scale in an int8 cache; None where C is no multiple of 16."""
    size = LARGEST_CACHE_BLOCK
    while size >= 16 and kv_lora_rank % size:
        size //= 2
    return size if size >= 16 else None


def cache_parts(
    cache_type: CacheType, kv_lora_rank: int, qk_rope_head_dim: int
) -> tuple[CachePart, ...]:
    """The tensors that the latent cache of one layer is made of."""
    width = kv_lora_rank + qk_rope_head_dim
    if cache_type == "float32":
        return (CachePart(name="cache", dtype="float32", width=width),)
    if cache_type == "float16":
        return (CachePart(name="cache", dtype="float16", width=width),)
    block = cache_block_size(kv_lora_rank)
    assert block is not None, "int8 caches need latents that are multiples of 16"
    return (
        CachePart(name="cache", dtype="uint8", width=kv_lora_rank),
        CachePart(name="cache_scales", dtype="float32", width=kv_lora_rank // block),
        CachePart(name="cache_rope", dtype="float16", width=qk_rope_head_dim),
    )


def graph_role(role: str, cache_type: CacheType) -> str:
    """The role of the graph whose latent caches have this type: decoder, decoder.int8, .."""
    return role if cache_type == "float32" else f"{role}.{cache_type}"
