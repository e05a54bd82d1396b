"""Whether the graphs of a bundle are what its manifest says."""

from __future__ import annotations

from shoal.graphs.cache_types import (
    CachePart,
    CacheType,
    cache_block_size,
    cache_parts,
    graph_role,
)
from shoal.graphs.contract import (
    BATCH_SLOTS,
    SLOT_ROWS_INPUT,
    expert_ids_output,
    expert_weights_output,
    in_slot,
)
from shoal.graphs.errors import BundleError
from shoal.graphs.manifest import Manifest, ModelInfo
from shoal.graphs.parameters import EMBEDDING
from shoal.runtime.bundle import Bundle
from shoal.runtime.engine.session import GraphSession, Port, PortType


def check_cache(bundle: Bundle, cache_type: CacheType) -> None:
    """Check that there are graphs for a type of cache.

    Raises:
        BundleError: there are none.
    """
    if graph_role("decoder", cache_type) in bundle.manifest.graphs:
        return
    rank = bundle.manifest.model.kv_lora_rank
    if cache_type == "int8" and cache_block_size(rank) is None:
        reason = f"kv_lora_rank {rank} is no multiple of 16; use float16"
    else:
        reason = "it is of an older shoal; re-export it or use float32"
    raise BundleError(f"{bundle.folder}: has no graphs with {cache_type} caches: {reason}")


def check_graphs(
    manifest: Manifest, decoder: GraphSession, head: GraphSession, cache_type: CacheType
) -> None:
    """Kernels trust sizes and ids, so manifest and graphs must agree before anything runs.

    Raises:
        BundleError: they do not.
    """
    info = manifest.model
    ids, hidden = _common_ports(info)
    caches_in, caches_out = _cache_ports(info, info.num_hidden_layers, cache_type)
    expert_ids = Port(type="tensor(int64)", width=info.num_experts_per_tok)
    expert_weights = Port(type="tensor(float)", width=info.num_experts_per_tok)
    decoder.require(
        {"input_ids": ids, "position_ids": ids} | caches_in,
        {"hidden": hidden}
        | caches_out
        | {expert_ids_output(layer): expert_ids for layer in info.moe_layers}
        | {expert_weights_output(layer): expert_weights for layer in info.moe_layers},
    )
    head.require({"hidden": hidden}, {"logits": Port(type="tensor(float)", width=info.vocab_size)})
    embedding = manifest.tensors.get(str(EMBEDDING))
    if embedding is not None and embedding.shape[0] != info.vocab_size:
        raise BundleError(
            f"{decoder.path.parent}: {EMBEDDING} has {embedding.shape[0]} rows, expected "
            f"vocab_size {info.vocab_size}; re-export the bundle"
        )


def check_mtp(info: ModelInfo, mtp: GraphSession, cache_type: CacheType) -> None:
    """See ``check_graphs``."""
    ids, hidden = _common_ports(info)
    caches_in, caches_out = _cache_ports(info, 1, cache_type)
    mtp.require(
        {"input_ids": ids, "position_ids": ids, "hidden": hidden} | caches_in,
        {"hidden_out": hidden} | caches_out,
    )


def check_batch(info: ModelInfo, batch: GraphSession, cache_type: CacheType) -> None:
    """See ``check_graphs``."""
    ids, hidden = _common_ports(info)
    caches_in, caches_out = (
        {in_slot(name, slot): port for name, port in ports.items() for slot in range(BATCH_SLOTS)}
        for ports in _cache_ports(info, info.num_hidden_layers, cache_type)
    )
    rows = Port(type="tensor(int64)", width=BATCH_SLOTS)
    batch.require(
        {"input_ids": ids, "position_ids": ids, SLOT_ROWS_INPUT: rows} | caches_in,
        {"hidden": hidden} | caches_out,
    )


def _common_ports(info: ModelInfo) -> tuple[Port, Port]:
    """Token ids and hidden states."""
    return (
        Port(type="tensor(int64)", width=None),
        Port(type="tensor(float)", width=info.hidden_size),
    )


def _cache_ports(
    info: ModelInfo, layers: int, cache_type: CacheType
) -> tuple[dict[str, Port], dict[str, Port]]:
    """Latent caches as graph inputs and as outputs."""
    parts = cache_parts(cache_type, info.kv_lora_rank, info.qk_rope_head_dim)
    pairs = [(part, layer) for layer in range(layers) for part in parts]
    return (
        {part.input(layer): _cache_port(part) for part, layer in pairs},
        {part.output(layer): _cache_port(part) for part, layer in pairs},
    )


def _cache_port(part: CachePart) -> Port:
    types: dict[str, PortType] = {
        "float32": "tensor(float)",
        "float16": "tensor(float16)",
        "uint8": "tensor(uint8)",
    }
    return Port(type=types[part.dtype], width=part.width)
