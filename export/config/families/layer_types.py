"""The key mlp_layer_types: which layers are dense and which have experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.export.config.values import ConfigReader

LAYER_TYPES = ("dense", "sparse")


def read_layer_types(reader: ConfigReader, values: Mapping[str, Any]) -> dict[str, Any]:
    """``mlp_layer_types`` as a field; absent, first_k_dense_replace and moe_layer_freq decide."""
    found = reader.take("mlp_layer_types")
    if found is None:
        return {}
    count = values["num_hidden_layers"]
    is_right = isinstance(found, list) and len(found) == count
    if not is_right or not all(entry in LAYER_TYPES for entry in found):
        reader.refuse("mlp_layer_types", f"{count} times 'dense' or 'sparse'", found)
        return {}
    return {"mlp_layer_types": tuple(found)}
