from __future__ import annotations

import numpy as np
import pytest

from shoal.graphs.cache_types import CACHE_TYPES, CachePart, cache_parts
from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime.engine.latent_cache import LatentCache
from shoal.runtime.engine.layer_state import CacheLayout
from shoal.runtime.machine.memory import Memory

PART = CachePart(name="cache", dtype="float32", width=6)


def new_cache(max_length=1000, parts=(PART,)):
    return LatentCache(3, CacheLayout(type="float32", parts=parts, max_length=max_length))


class Addresses:
    """What a graph is told: name -> (dtype, shape, address) of inputs and outputs."""

    def __init__(self, cache, length=0):
        self.inputs, self.outputs = {}, {}
        cache.bind_to(self, length)

    def bind_input_at(self, name, *place):
        self.inputs[name] = place

    def bind_output_at(self, name, *place):
        self.outputs[name] = place


def address(cache, layer):
    return Addresses(cache).inputs[f"cache.{layer}"][2]


def rows(cache, layer):
    return cache.rows()[f"cache.{layer}"]


def fill(cache, start, stop):
    """Write rows as a graph would, through the address of the buffer."""
    cache.reserve(stop)
    for layer in range(cache.num_layers):
        buffer = cache._buffers[f"cache.{layer}"]
        assert buffer.ctypes.data == address(cache, layer)
        for row in range(start, stop):
            buffer[0, row] = 100 * layer + row
    cache.advance(stop - start)


@pytest.mark.parametrize(
    ("cache_type", "layer_bytes"),
    [("float32", (512 + 64) * 4), ("float16", (512 + 64) * 2), ("int8", 512 + 8 * 4 + 64 * 2)],
)
def test_a_token_takes_exactly_the_latent_its_scales_and_the_rope_key(cache_type, layer_bytes):
    cache = new_cache(parts=cache_parts(cache_type, 512, 64))
    assert cache.bytes_per_token == 3 * layer_bytes
    cache.reserve(1000)
    assert cache.nbytes == 1000 * cache.bytes_per_token


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_each_part_of_a_layer_is_bound_in_place_under_a_name_of_its_own(cache_type):
    parts = cache_parts(cache_type, 32, 8)
    cache = new_cache(parts=parts)
    cache.reserve(20)
    bound = Addresses(cache, 17)
    names = [(f"{p.name}.{n}", f"{p.name}_out.{n}", p) for n in range(3) for p in parts]
    assert [name for name, _, _ in names] == list(bound.inputs)
    for name, output, part in names:
        assert bound.inputs[name] == bound.outputs[output]
        assert bound.inputs[name][:2] == (part.dtype, (1, 17, part.width))
    assert len({place[2] for place in bound.inputs.values()}) == 3 * len(parts)


def test_growing_keeps_every_row_and_stays_below_twice_what_is_used():
    cache = new_cache()
    capacities = set()
    for length in range(0, 900, 7):
        fill(cache, length, length + 7)
        capacities.add(cache.capacity)
        if length > 100:
            assert cache.nbytes <= 2 * cache.length * cache.bytes_per_token
    assert len(capacities) < 10
    for layer in range(3):
        expected = np.repeat(np.arange(903)[:, None] + 100 * layer, 6, axis=1)
        np.testing.assert_array_equal(rows(cache, layer), expected)


def test_room_never_exceeds_what_the_model_can_read():
    cache = new_cache(max_length=100)
    fill(cache, 0, 80)
    fill(cache, 80, 90)
    assert cache.capacity == 100
    with pytest.raises(InputError, match=r"101 tokens are more than the model's 100"):
        cache.reserve(101)


def test_rewinding_forgets_rows_and_keeps_the_room():
    cache = new_cache()
    fill(cache, 0, 80)
    before = cache.nbytes
    cache.rewind(5)
    assert (cache.length, cache.nbytes) == (5, before)
    np.testing.assert_array_equal(rows(cache, 2)[:, 0], 200 + np.arange(5))
    for wrong in (-1, 6):
        with pytest.raises(InputError, match=f"cannot rewind to {wrong}"):
            cache.rewind(wrong)


def test_a_cache_larger_than_memory_is_refused_and_the_rows_stay(monkeypatch):
    cache = new_cache(max_length=10**9)
    fill(cache, 0, 10)
    memory = Memory(total_bytes=10**6, available_bytes=10**5, limit_bytes=None)
    monkeypatch.setattr("shoal.runtime.engine.latent_cache.read_memory", lambda: memory)
    with pytest.raises(RuntimeFailure, match="2000 tokens take 0 MB, more than is free"):
        cache.reserve(2000)
    np.testing.assert_array_equal(rows(cache, 0)[:, 0], np.arange(10))


def test_an_allocation_that_fails_half_way_leaves_the_rows(monkeypatch):
    cache = new_cache()
    fill(cache, 0, 10)
    real, calls = np.empty, []

    def failing_empty(shape, dtype):
        calls.append(shape)
        if len(calls) == 2:
            raise MemoryError
        return real(shape, dtype)

    monkeypatch.setattr(np, "empty", failing_empty)
    with pytest.raises(RuntimeFailure, match="latent cache"):
        cache.reserve(500)
    monkeypatch.undo()
    fill(cache, 10, 500)
    for layer in range(3):
        np.testing.assert_array_equal(rows(cache, layer)[:, 0], 100 * layer + np.arange(500))


def test_a_fork_costs_nothing_until_one_of_the_two_goes_on():
    cache = new_cache()
    fill(cache, 0, 80)
    fork = cache.fork()
    assert cache.is_shared
    assert fork.is_shared
    assert [address(fork, n) for n in range(3)] == [address(cache, n) for n in range(3)]
    fork.rewind(5)
    cache_address = address(cache, 0)
    fork.reserve(6)
    assert not cache.is_shared
    assert fork.capacity < cache.capacity, "a fork takes room for its own rows only"
    fork._buffers["cache.1"][0, 5] = -1
    fork.advance(1)
    cache.reserve(80)
    assert address(cache, 0) == cache_address, "nothing is copied for the last one"
    np.testing.assert_array_equal(rows(cache, 1)[:, 0], 100 + np.arange(80))
    np.testing.assert_array_equal(rows(fork, 1)[:, 0], [100, 101, 102, 103, 104, -1])


def test_a_fork_that_is_gone_costs_nothing():
    cache = new_cache()
    fill(cache, 0, 10)
    before = address(cache, 0)
    fork = cache.fork()
    del fork
    cache.reserve(11)
    assert address(cache, 0) == before
