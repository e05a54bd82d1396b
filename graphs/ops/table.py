"""The table of all ops of the shoal domain."""

from __future__ import annotations

from shoal.graphs.ops.dequantize import DEQUANTIZE_BLOCKS
from shoal.graphs.ops.embedding import EMBEDDING, FLOAT_EMBEDDING
from shoal.graphs.ops.int8_cache import (
    FLOAT_LATENT_ATTENTION_INT8_CACHE,
    LATENT_ATTENTION_INT8_CACHE,
)
from shoal.graphs.ops.latent_attention import FLOAT_LATENT_ATTENTION, LATENT_ATTENTION
from shoal.graphs.ops.linear import FLOAT_LINEAR, LINEAR, PRECISE_LINEAR
from shoal.graphs.ops.route import ROUTE
from shoal.graphs.ops.sparse_experts import (
    FLOAT_SPARSE_EXPERTS,
    INT4_SPARSE_EXPERTS,
    SPARSE_EXPERTS,
    UNPACK_NIBBLES,
)
from shoal.graphs.ops.spec import OpSpec

OPS: dict[str, OpSpec] = {
    spec.name: spec
    for spec in (
        FLOAT_EMBEDDING,
        EMBEDDING,
        FLOAT_LINEAR,
        LINEAR,
        PRECISE_LINEAR,
        ROUTE,
        FLOAT_SPARSE_EXPERTS,
        SPARSE_EXPERTS,
        INT4_SPARSE_EXPERTS,
        UNPACK_NIBBLES,
        FLOAT_LATENT_ATTENTION,
        LATENT_ATTENTION,
        FLOAT_LATENT_ATTENTION_INT8_CACHE,
        LATENT_ATTENTION_INT8_CACHE,
        DEQUANTIZE_BLOCKS,
    )
}
