from __future__ import annotations

import numpy as np
import pytest

from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime.latent_cache import LatentCache
from shoal.runtime.memory import Memory


def new_cache(max_length=1000):
    return LatentCache(3, width=6, max_length=max_length)


def fill(cache, start, stop):
    """Write rows as a graph would, through the address of the buffer."""
    cache.reserve(stop)
    for layer in range(cache.num_layers):
        buffer = cache._buffers[layer]
        assert buffer.ctypes.data == cache.address(layer)
        for row in range(start, stop):
            buffer[0, row] = 100 * layer + row
    cache.advance(stop - start)


def test_a_token_takes_exactly_the_latent_and_the_rope_key():
    assert new_cache().bytes_per_token == 3 * 6 * 4


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
        np.testing.assert_array_equal(cache.rows(layer), expected)


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
    np.testing.assert_array_equal(cache.rows(2)[:, 0], 200 + np.arange(5))
    for wrong in (-1, 6):
        with pytest.raises(InputError, match=f"cannot rewind to {wrong}"):
            cache.rewind(wrong)


def test_a_cache_larger_than_memory_is_refused_and_the_rows_stay(monkeypatch):
    cache = new_cache(max_length=10**9)
    fill(cache, 0, 10)
    memory = Memory(total_bytes=10**6, available_bytes=10**5, limit_bytes=None)
    monkeypatch.setattr("shoal.runtime.latent_cache.read_memory", lambda: memory)
    with pytest.raises(RuntimeFailure, match="2000 tokens take 0 MB, more than is free"):
        cache.reserve(2000)
    np.testing.assert_array_equal(cache.rows(0)[:, 0], np.arange(10))


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
        np.testing.assert_array_equal(cache.rows(layer)[:, 0], 100 * layer + np.arange(500))


def test_a_fork_costs_nothing_until_one_of_the_two_goes_on():
    cache = new_cache()
    fill(cache, 0, 80)
    fork = cache.fork()
    assert cache.is_shared
    assert fork.is_shared
    assert [fork.address(n) for n in range(3)] == [cache.address(n) for n in range(3)]
    fork.rewind(5)
    cache_address = cache.address(0)
    fork.reserve(6)
    assert not cache.is_shared
    assert fork.capacity < cache.capacity, "a fork takes room for its own rows only"
    fork._buffers[1][0, 5] = -1
    fork.advance(1)
    cache.reserve(80)
    assert cache.address(0) == cache_address, "nothing is copied for the last one"
    np.testing.assert_array_equal(cache.rows(1)[:, 0], 100 + np.arange(80))
    np.testing.assert_array_equal(fork.rows(1)[:, 0], [100, 101, 102, 103, 104, -1])


def test_a_fork_that_is_gone_costs_nothing():
    cache = new_cache()
    fill(cache, 0, 10)
    address = cache.address(0)
    fork = cache.fork()
    del fork
    cache.reserve(11)
    assert cache.address(0) == address
