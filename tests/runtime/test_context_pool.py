from __future__ import annotations

import numpy as np
import pytest

from shoal.graphs.errors import InputError
from shoal.runtime import open_bundle
from shoal.runtime.context_pool import ContextPool

IDS = list(range(40, 640, 11))


@pytest.fixture(scope="module")
def model(int8_bundle):
    return open_bundle(int8_bundle, threads=1)


def filled(model, ids):
    context = model.new_context()
    context.prefill(ids)
    return context


def test_a_prompt_gets_the_context_with_the_longest_common_start(model):
    pool = ContextPool(model, 10**9)
    short, long = filled(model, IDS[:10]), filled(model, IDS[:30])
    pool.give_back(short)
    pool.give_back(long)
    assert pool.take([*IDS[:30], 7]) is long
    assert pool.take([*IDS[:30], 7]) is short
    assert len(pool) == 0
    assert pool.take(IDS).position == 0


def test_a_context_that_goes_on_otherwise_stays_and_is_forked(model):
    pool = ContextPool(model, 10**9)
    kept = filled(model, IDS[:30])
    pool.give_back(kept)
    taken = pool.take([*IDS[:20], 7, 8])
    assert taken is not kept
    assert (taken.tokens, len(pool)) == (tuple(IDS[:20]), 1)
    expected = filled(model, IDS[:30])
    expected.rewind(20)
    np.testing.assert_array_equal(taken.prefill([7, 8]), expected.prefill([7, 8]))
    assert pool.take(IDS).tokens == tuple(IDS[:30])


def test_the_least_recently_used_go_first(model):
    one = filled(model, IDS)
    pool = ContextPool(model, 2 * one.nbytes)
    others = [filled(model, [start, *IDS[1:]]) for start in (1, 2)]
    for context in (one, *others):
        pool.give_back(context)
    assert (len(pool), pool.nbytes) == (2, 2 * one.nbytes)
    assert pool.take(IDS).position == 0, "the oldest is gone"
    assert pool.take([1, *IDS[1:]]) is others[0]


def test_a_context_is_kept_once_and_an_empty_one_not_at_all(model):
    pool = ContextPool(model, 10**9)
    context = filled(model, IDS)
    pool.give_back(context)
    pool.give_back(context)
    pool.give_back(model.new_context())
    assert len(pool) == 1


def test_no_room_keeps_nothing_and_less_is_refused(model):
    pool = ContextPool(model, 0)
    pool.give_back(filled(model, IDS))
    assert len(pool) == 0
    with pytest.raises(InputError, match="max_bytes"):
        ContextPool(model, -1)
