"""Whether a bundle's graphs have the inputs and outputs that its manifest promises."""

from __future__ import annotations

from shoal.graphs.contract import (
    cache_input,
    cache_output,
    expert_ids_output,
    expert_weights_output,
)
from shoal.graphs.errors import BundleError
from shoal.graphs.manifest import Manifest, ModelInfo
from shoal.runtime.session import GraphSession, Port

_EMBEDDING = "embed_tokens.weight"


def check_graphs(manifest: Manifest, decoder: GraphSession, head: GraphSession) -> None:
    """Kernels trust sizes and ids, so manifest and graphs must agree before anything runs.

    Raises:
        BundleError: they do not.
    """
    info = manifest.model
    layers = range(info.num_hidden_layers)
    ids, hidden, cache = _common_ports(info)
    expert_ids = Port(type="tensor(int64)", width=info.num_experts_per_tok)
    expert_weights = Port(type="tensor(float)", width=info.num_experts_per_tok)
    decoder.require(
        {"input_ids": ids, "position_ids": ids} | {cache_input(layer): cache for layer in layers},
        {"hidden": hidden}
        | {cache_output(layer): cache for layer in layers}
        | {expert_ids_output(layer): expert_ids for layer in info.moe_layers}
        | {expert_weights_output(layer): expert_weights for layer in info.moe_layers},
    )
    head.require({"hidden": hidden}, {"logits": Port(type="tensor(float)", width=info.vocab_size)})
    embedding = manifest.tensors.get(_EMBEDDING)
    if embedding is not None and embedding.shape[0] != info.vocab_size:
        raise BundleError(
            f"{decoder.path.parent}: {_EMBEDDING} has {embedding.shape[0]} rows, expected "
            f"vocab_size {info.vocab_size}; re-export the bundle"
        )


def check_mtp(info: ModelInfo, mtp: GraphSession) -> None:
    """The same for the multi-token-prediction module; see ``check_graphs``."""
    ids, hidden, cache = _common_ports(info)
    mtp.require(
        {"input_ids": ids, "position_ids": ids, "hidden": hidden, cache_input(0): cache},
        {"hidden_out": hidden, cache_output(0): cache},
    )


def _common_ports(info: ModelInfo) -> tuple[Port, Port, Port]:
    """Token ids, hidden states and a latent cache."""
    return (
        Port(type="tensor(int64)", width=None),
        Port(type="tensor(float)", width=info.hidden_size),
        Port(type="tensor(float)", width=info.kv_lora_rank + info.qk_rope_head_dim),
    )
