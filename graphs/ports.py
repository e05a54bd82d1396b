"""The inputs and outputs that each graph of a bundle has; the contract says what they mean.

Kernels trust sizes and ids, so manifest and graphs must agree before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.graphs.cache_types import CACHE_TYPES, CacheType, cache_parts, graph_role
from shoal.graphs.contract import (
    BATCH_SLOTS,
    SLOT_ROWS_INPUT,
    expert_ids_output,
    expert_weights_output,
    in_slot,
)
from shoal.graphs.errors import BundleError
from shoal.graphs.manifest import ModelInfo
from shoal.graphs.onnx_file import FLOAT, FLOAT16, INT64, UINT8, GraphFile
from shoal.graphs.onnx_file import Port as Found

_DATA_TYPES = {"float32": FLOAT, "float16": FLOAT16, "uint8": UINT8}


@dataclass(frozen=True)
class Port:
    """What an input or output must be like; dimensions other than the last may vary."""

    data_type: int
    rank: int
    width: int | None  # the last dimension, None if it may vary too

    def is_like(self, found: Found) -> bool:
        """Whether an input or output of a graph is so."""
        return (
            found.data_type == self.data_type
            and len(found.dims) == self.rank
            and (found.dims[-1] == self.width or self.width is None)
        )


_Ports = dict[str, Port]
_IDS = Port(INT64, 2, None)


def check_ports(graph: GraphFile, where: str, role: str, info: ModelInfo) -> None:
    """Check that a graph has exactly the inputs and at least the outputs of its role.

    Raises:
        BundleError: they differ.
    """
    inputs, outputs = _ports_of(role, info)
    found_inputs = {port.name: port for port in graph.inputs}
    found_outputs = {port.name: port for port in graph.outputs}
    wrong = sorted(
        found_inputs.keys() ^ inputs.keys()
        | _unlike(inputs, found_inputs)
        | _unlike(outputs, found_outputs)
    )
    if wrong or len(found_inputs) != len(graph.inputs):
        names = ", ".join(ascii(name[:80]) for name in wrong[:5])
        raise BundleError(
            f"{where}: inputs or outputs differ from the manifest at {names}; re-export the bundle"
        )


def _unlike(expected: Mapping[str, Port], found: Mapping[str, Found]) -> set[str]:
    return {
        name
        for name, port in expected.items()
        if name not in found or not port.is_like(found[name])
    }


def _ports_of(role: str, info: ModelInfo) -> tuple[_Ports, _Ports]:
    """Inputs and outputs of a graph."""
    hidden = Port(FLOAT, 3, info.hidden_size)
    if role == "head":
        return {"hidden": hidden}, {"logits": Port(FLOAT, 3, info.vocab_size)}
    for cache_type in CACHE_TYPES:
        if role == graph_role("decoder", cache_type):
            return _decoder(info, hidden, cache_type)
        if role == graph_role("batch", cache_type):
            return _batch(info, hidden, cache_type)
        if role == graph_role("mtp", cache_type):
            caches_in, caches_out = _cache_ports(info, 1, cache_type)
            return _ids() | {"hidden": hidden} | caches_in, {"hidden_out": hidden} | caches_out
    raise AssertionError(f"{role}: the manifest has checked the roles")


def _ids() -> _Ports:
    return {"input_ids": _IDS, "position_ids": _IDS}


def _decoder(info: ModelInfo, hidden: Port, cache_type: CacheType) -> tuple[_Ports, _Ports]:
    caches_in, caches_out = _cache_ports(info, info.num_hidden_layers, cache_type)
    outputs = {"hidden": hidden} | caches_out
    for layer in info.moe_layers:
        outputs[expert_ids_output(layer)] = Port(INT64, 3, info.num_experts_per_tok)
        outputs[expert_weights_output(layer)] = Port(FLOAT, 3, info.num_experts_per_tok)
    return _ids() | caches_in, outputs


def _batch(info: ModelInfo, hidden: Port, cache_type: CacheType) -> tuple[_Ports, _Ports]:
    caches_in, caches_out = (
        {in_slot(name, slot): port for name, port in ports.items() for slot in range(BATCH_SLOTS)}
        for ports in _cache_ports(info, info.num_hidden_layers, cache_type)
    )
    slot_rows = {SLOT_ROWS_INPUT: Port(INT64, 1, BATCH_SLOTS)}
    return _ids() | slot_rows | caches_in, {"hidden": hidden} | caches_out


def _cache_ports(info: ModelInfo, layers: int, cache_type: CacheType) -> tuple[_Ports, _Ports]:
    """Latent caches as graph inputs and as outputs."""
    parts = cache_parts(cache_type, info.kv_lora_rank, info.qk_rope_head_dim)
    pairs = [(part, layer) for layer in range(layers) for part in parts]
    return (
        {part.input(layer): Port(_DATA_TYPES[part.dtype], 3, part.width) for part, layer in pairs},
        {part.output(layer): Port(_DATA_TYPES[part.dtype], 3, part.width) for part, layer in pairs},
    )
