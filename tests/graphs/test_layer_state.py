"""Names of the graph inputs and outputs that hold the state of a layer."""

from __future__ import annotations

import pytest

from shoal.graphs.cache_types import CACHE_TYPES, CacheType, cache_parts
from shoal.graphs.layer_state import layer_of_state, state_input, state_output


@pytest.mark.parametrize("layer", [0, 7, 60])
def test_a_state_is_named_by_what_it_is_and_by_its_layer(layer: int) -> None:
    assert state_input("memory", layer) == f"memory.{layer}"
    assert state_output("memory", layer) == f"memory_out.{layer}"
    assert layer_of_state(state_input("memory", layer)) == layer


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_the_parts_of_a_latent_cache_are_named_like_any_state(cache_type: CacheType) -> None:
    for part in cache_parts(cache_type, 32, 8):
        assert part.input(3) == state_input(part.name, 3)
        assert part.output(3) == state_output(part.name, 3)
