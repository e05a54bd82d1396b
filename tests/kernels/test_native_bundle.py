"""Whole bundles with native kernels: the same answers, and weights that stay in the file."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.graphs.one_op import Array
from tests.tolerances import INT8_CHUNKING_KL, INT8_MEAN_KL

from shoal.graphs.fidelity import shipped_text
from shoal.runtime import open_bundle
from shoal.runtime.engine import session
from shoal.runtime.kernels.library import KernelLibrary, find_library
from shoal.runtime.model import Model

pytestmark = pytest.mark.dependencies

TEXT = shipped_text()

# Opens a bundle, computes one token and prints how much anonymous memory each step took.
MEMORY = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shoal.runtime import open_bundle
from shoal.runtime.machine.memory import read_resident
open_bundle(Path(sys.argv[1]), kernels="native", threads=1)
before = read_resident().anonymous_bytes
model = open_bundle(Path(sys.argv[2]), kernels="native", threads=1)
opened = read_resident().anonymous_bytes
context = model.new_context()
context.prefill([0])
print(opened - before, read_resident().anonymous_bytes - opened)
"""


# Opens a bundle, computes one token, says so, and stays until its input ends.
STAYING = """
import sys
from pathlib import Path
from shoal.runtime import open_bundle
model = open_bundle(Path(sys.argv[1]), kernels="native", threads=1)
model.new_context().prefill([0])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def native(int8_bundle: Path, library: KernelLibrary, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(session, "find_library", lambda: library)
    return open_bundle(int8_bundle, kernels="native", threads=2)


def divergences(expected: Array, found: Array) -> Array:
    """KL divergence of each position."""
    log_p = expected - np.logaddexp.reduce(expected, axis=-1, keepdims=True)
    log_q = found - np.logaddexp.reduce(found, axis=-1, keepdims=True)
    divergence: Array = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return divergence


def test_native_kernels_are_as_close_to_float_as_int8_has_to_be(
    native: Model, fp32_bundle: Path
) -> None:
    ids = native.encode(TEXT)
    reference = open_bundle(fp32_bundle, threads=1)
    assert native.kernels == "native"
    windows = [ids[start : start + 512] for start in range(0, 2048, 512)]
    divergence = np.mean([divergences(reference.logits(w), native.logits(w)) for w in windows])
    assert divergence <= INT8_MEAN_KL, f"mean KL divergence {divergence:.2e}"


def test_logits_are_those_of_the_portable_form(native: Model, int8_bundle: Path) -> None:
    portable = open_bundle(int8_bundle, kernels="portable", threads=1)
    ids = native.encode(TEXT[:6000])
    # The median: where a last-bit difference turns the choice of an expert over, which two float32
    # implementations do in one position of hundreds, one position decides the mean.
    divergence = np.median(divergences(portable.logits(ids), native.logits(ids)))
    assert divergence <= INT8_CHUNKING_KL, f"median KL divergence {divergence:.2e}"


def test_the_number_of_threads_changes_no_bit(native: Model, int8_bundle: Path) -> None:
    ids = native.encode(TEXT[:200])
    for threads in (1, 3):
        other = open_bundle(int8_bundle, kernels="native", threads=threads)
        assert np.array_equal(other.logits(ids), native.logits(ids))


def test_opening_and_running_copies_no_weights(int8_bundle: Path, library: KernelLibrary) -> None:
    if find_library() != library:
        pytest.skip("the library was built for the tests only; a subprocess would not find it")
    weight_bytes = (int8_bundle / "weights.bin").stat().st_size
    # The first opening pays for the libraries, so that the second shows the bundle alone.
    command = [sys.executable, "-c", MEMORY, str(int8_bundle), str(int8_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    opened, ran = map(int, done.stdout.split())
    assert opened < weight_bytes / 4, f"opening took {opened} bytes, the weights are {weight_bytes}"
    assert ran < weight_bytes / 4, f"a token took {ran} bytes, the weights are {weight_bytes}"


def test_two_processes_on_one_bundle_share_its_memory(
    int8_bundle: Path, library: KernelLibrary
) -> None:
    if find_library() != library:
        pytest.skip("the library was built for the tests only; a subprocess would not find it")
    if not Path("/proc/self/smaps").exists():
        pytest.skip("this system does not say which pages processes share")
    command = [sys.executable, "-c", STAYING, str(int8_bundle)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            sizes = mapped_sizes(process.pid, str(int8_bundle / "weights.bin"))
            assert sizes["Rss"] > 1_000_000
            assert sizes["Anonymous"] == 0  # no page is a copy
            # Which neighbours of a page are mapped with it differs from process to process.
            assert sizes["Shared_Clean"] + sizes["Shared_Dirty"] > sizes["Rss"] / 2
    finally:
        for process in processes:
            process.communicate()


def mapped_sizes(pid: int, path: str) -> dict[str, int]:
    """Bytes by kind, summed over a process's mappings of a file."""
    sizes: dict[str, int] = {}
    is_inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            is_inside = line.endswith(path)
        elif is_inside and rest[-1] == "kB":
            sizes[first[:-1]] = sizes.get(first[:-1], 0) + int(rest[0]) * 1024
    return sizes


def test_contexts_in_several_threads_do_not_disturb_each_other(native: Model) -> None:
    ids = native.encode(TEXT[:400])
    parts = [ids[start : start + 40] for start in (0, 20, 40, 60)]
    expected = [native.logits(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(native.logits, parts))
            assert all(map(np.array_equal, found, expected))
