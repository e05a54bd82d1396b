"""What goes wrong between steps: disks that fill up, contexts that are full or shared, threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from shoal.graphs.errors import InputError
from shoal.runtime import open_bundle
from shoal.runtime.context_pool import ContextPool
from shoal.runtime.engine.latent_cache import LatentCache

IDS = list(range(40, 640, 11))


@pytest.fixture(scope="module")
def model(int8_bundle):
    return open_bundle(int8_bundle, threads=1, cache="int8")


SAVE_ON_A_SMALL_DISK = """
import resource, signal, sys
from shoal.runtime import open_bundle

model = open_bundle(sys.argv[1], threads=1, cache="int8")
context = model.load_context(sys.argv[2])
context.decode(7)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    context.save(sys.argv[2])
except Exception as error:
    print(type(error).__name__, error)
print(context.position)
"""


@pytest.mark.parametrize("room", [0, 100, 20_000])
def test_a_disk_that_fills_up_while_saving_leaves_the_old_file(model, tmp_path, room):
    """A limit on the size of files stands for the disk: the system refuses to write on."""
    context = model.new_context()
    context.prefill(IDS)
    path = tmp_path / "a.ctx"
    context.save(path)
    before = path.read_bytes()
    assert len(before) > room
    command = [sys.executable, "-c", SAVE_ON_A_SMALL_DISK]
    command += [str(model.bundle.folder), str(path), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    refusal, position = done.stdout.splitlines()
    assert refusal.startswith("RuntimeFailure ")
    assert "the context could not be written" in refusal
    assert position == str(len(IDS) + 1), "the context itself is as it was"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.ctx"]


def test_a_rewind_into_a_shared_prefix_leaves_the_others_as_they_are(model):
    context = model.new_context()
    drafter = model.drafts.start(context)
    context.prefill(IDS)
    drafter.propose(context.position, 7, 1)
    expected = context.fork().decode(7)
    forks = [context.fork() for _ in range(3)]
    for index, fork in enumerate(forks):
        fork.rewind(5 + index)
        fork.prefill([9, 9 + index])
    context.rewind(4)
    context.prefill([3, 3])
    for index, fork in enumerate(forks):
        assert fork.tokens == (*IDS[: 5 + index], 9, 9 + index)
        fork.rewind(5 + index)
        fork.prefill(IDS[5 + index :])
        np.testing.assert_array_equal(fork.decode(7).argmax(), expected.argmax())
    assert context.tokens == (*IDS[:4], 3, 3)


def test_a_prefix_shared_through_the_pool_is_not_written_to(model):
    pool = ContextPool(model, max_bytes=1 << 30)
    context = pool.take(IDS)
    context.prefill(IDS)
    rows = {name: part.copy() for name, part in context.layer_state.rows().items()}
    pool.give_back(context)
    other = pool.take([*IDS[:20], 7, 8])
    state = other.layer_state
    assert isinstance(state, LatentCache)
    assert (other.position, state.is_shared) == (20, True)
    other.prefill([7, 8])
    other.rewind(3)
    other.prefill([1, 2, 3])
    again = pool.take(IDS)
    assert again is context
    np.testing.assert_equal(again.layer_state.rows(), rows)


def test_answers_of_one_model_in_several_threads_are_those_of_one_after_another(model):
    prompts = [[5 + seed + 3 * n for n in range(30 + seed)] for seed in range(4)]

    def answer(prompt):
        return list(model.generate(prompt, max_new_tokens=16, stop_tokens=(), draft=1))

    expected = [answer(prompt) for prompt in prompts]
    found = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: answer(prompts[n])}))
        for n in range(len(prompts))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(prompts))] == expected


def test_two_answers_at_once_in_one_context_are_refused_or_right(model):
    """Each step is refused while another one runs; between steps the context is switched."""
    context = model.new_context()
    prompts = [IDS[:30], IDS[10:40]]
    expected = [list(model.generate(p, max_new_tokens=12, stop_tokens=())) for p in prompts]
    outcomes: dict[int, object] = {}

    def answer(n):
        generation = model.generate(prompts[n], max_new_tokens=12, stop_tokens=(), context=context)
        try:
            outcomes[n] = list(generation)
        except InputError as error:
            outcomes[n] = str(error)

    threads = [threading.Thread(target=answer, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(2):
        refused = "another thread is using it" in str(outcomes[n])
        assert refused or outcomes[n] == expected[n]
