"""Memory a model needs to run: the weights, as each form of the ops holds them, and latent cache.

Standard library only; the figures are the same for a bundle and for a checkpoint yet to export.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shoal.graphs.cache_types import CacheType, cache_parts
from shoal.graphs.manifest import ModelInfo, TensorInfo
from shoal.graphs.parameters import HEAD, Parameter

_NOT_REPACKED = ("embedding", "attention_latent")  # kinds of weights that no product of rows reads
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


def bundle_cache_token_bytes(model: ModelInfo, cache_type: CacheType = "float32") -> int:
    """Latent cache of one token of a bundle's model."""
    ranks = model.kv_lora_rank, model.qk_rope_head_dim
    return cache_token_bytes(*ranks, model.num_hidden_layers, cache_type)


def loaded_weight_bytes(tensors: Mapping[str, TensorInfo]) -> int:
    """Memory that the portable form takes for weights, which onnxruntime repacks when it loads.

    Repacking keeps the bytes of a weight and stores a sum beside each int8 scale. Not repacked are
    the embedding, of which a token touches one row, the weights inside attention and float32
    experts. MTP modules are not loaded until drafting (``mtp_weight_bytes``).

    Args:
        tensors: the tensors of weights.bin.
    """
    return sum(_copied_bytes(parameter, info) for parameter, info in _loaded(tensors))


def mtp_weight_bytes(tensors: Mapping[str, TensorInfo]) -> int:
    """The same for an MTP module, which uses the embedding and the head of the model."""
    return sum(
        _copied_bytes(parameter, info) for parameter, info in _parsed(tensors) if parameter.is_mtp
    )


def mapped_weight_bytes(tensors: Mapping[str, TensorInfo], *, native: bool) -> int:
    """Weights that are read where the file is mapped, in memory as far as there is room.

    Args:
        tensors: the tensors of weights.bin.
        native: with native kernels these are all weights, else those that are not repacked.
    """
    return sum(
        info.size
        for parameter, info in _parsed(tensors)
        if not parameter.is_mtp
        and (native or parameter.is_scales or not _copied_bytes(parameter, info))
    )


def _parsed(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[Parameter, TensorInfo]]:
    return ((Parameter.parse(name), info) for name, info in tensors.items())


def _loaded(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[Parameter, TensorInfo]]:
    """Tensors that products read; a tied embedding is also the head."""
    for parameter, info in _parsed(tensors):
        if parameter.kind == "embedding":
            if str(HEAD) not in tensors:
                yield HEAD.scales if parameter.is_scales else HEAD, info
        elif not parameter.is_mtp:
            yield parameter, info


def _copied_bytes(parameter: Parameter, info: TensorInfo) -> int:
    if parameter.kind in _NOT_REPACKED:
        return 0
    if parameter.is_scales:
        return 2 * info.size
    if info.dtype == "uint4":  # unpacked when the graph is opened
        return 2 * info.size
    return 0 if info.dtype == "float32" and parameter.is_routed_experts else info.size


def memory_by_context(
    weight_bytes: int, token_bytes: int, max_position_embeddings: int
) -> list[dict[str, int]]:
    """Memory needed by length of the context, in the portable form and without scratch memory.

    With native kernels weights stay in the mapped file, and the cache is all that is needed.

    Args:
        weight_bytes: see ``loaded_weight_bytes``.
        token_bytes: see ``cache_token_bytes``.
        max_position_embeddings: the model's longest context, with which the list ends.

    Returns:
        For each length: tokens, bytes of cache, and bytes of cache and weights together.
    """
    return [
        {
            "context_tokens": length,
            "cache_bytes": length * token_bytes,
            "memory_bytes": weight_bytes + length * token_bytes,
        }
        for length in context_lengths(max_position_embeddings)
    ]


def context_lengths(max_position_embeddings: int) -> list[int]:
    """Lengths that tables of memory show, the model's longest context last."""
    lengths = [length for length in _CONTEXT_TOKENS if length < max_position_embeddings]
    return [*lengths, max_position_embeddings]
