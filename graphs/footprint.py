"""Memory a model needs to run: the weights as the portable form holds them, and the latent cache.

Standard library only; the figures are the same for a bundle and for a checkpoint yet to export.
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal.graphs.cache_types import CacheType, cache_parts
from shoal.graphs.manifest import TensorInfo

_SCALES = "_scales"
_CONTEXT_TOKENS = (2048, 8192, 32768, 131072)


def cache_token_bytes(
    kv_lora_rank: int,
    qk_rope_head_dim: int,
    num_hidden_layers: int,
    cache_type: CacheType = "float32",
) -> int:
    """Latent cache of one token: C + R values in each layer, nothing else but int8's scales."""
    parts = cache_parts(cache_type, kv_lora_rank, qk_rope_head_dim)
    return num_hidden_layers * sum(part.token_bytes for part in parts)


def loaded_weight_bytes(tensors: Mapping[str, TensorInfo]) -> int:
    """Memory the weights take in the portable form, which repacks int8 weights when it loads.

    Repacking keeps the bytes of a weight and stores a sum beside each scale. The embedding stays in
    the mapped file, of which a token touches one row; MTP modules are not loaded until drafting.

    Args:
        tensors: the tensors of weights.bin.
    """
    return sum(_loaded_bytes(name, info) for name, info in tensors.items())


def _loaded_bytes(name: str, info: TensorInfo) -> int:
    weight = name.removesuffix(_SCALES)
    if weight.startswith(("mtp.", "embed_tokens.")):
        return 0
    return info.size if name == weight else 2 * info.size


def memory_by_context(
    weight_bytes: int, token_bytes: int, max_position_embeddings: int
) -> list[dict[str, int]]:
    """Memory needed by length of the context.

    Args:
        weight_bytes: see ``loaded_weight_bytes``.
        token_bytes: see ``cache_token_bytes``.
        max_position_embeddings: the model's longest context, with which the list ends.

    Returns:
        For each length: tokens, bytes of cache, and bytes of cache and weights together.
    """
    lengths = [length for length in _CONTEXT_TOKENS if length < max_position_embeddings]
    return [
        {
            "context_tokens": length,
            "cache_bytes": length * token_bytes,
            "memory_bytes": weight_bytes + length * token_bytes,
        }
        for length in [*lengths, max_position_embeddings]
    ]
