"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.runtime.kernels.build import KernelBuildError, build_library, find_compiler
from shoal.runtime.kernels.library import KernelLibrary

# The define lets a processor with AVX-512 run what is meant for those with AVX-VNNI.
FLAGS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-O1",
    "-g",
    "-DSHOAL_VNNI_AS_AVX512VL",
)

# Runs every op with odd shapes, for few and many tokens, on each instruction set of the library in
# argv[1]; prints a checksum of what must be equal on all of them.
EXERCISE = """
import hashlib, os, sys
from pathlib import Path
from shoal.runtime.kernels.library import find_library
from tests.graphs.one_op import OneOpModels
from tests.graphs.op_inputs import float_inputs, int8_inputs, with_cache
from tests.kernels import test_native_attention, test_native_experts, test_native_linear

library = Path(sys.argv[1])
for isa in find_library(library).isas:
    os.environ["SHOAL_ISA"] = isa
    folder = Path(sys.argv[2]) / isa
    folder.mkdir()
    models = OneOpModels(folder, library, threads=2)
    products = hashlib.sha256()
    for block_size in (16, 32, 64, 256):
        for tokens, n in ((0, 3), (1, 5), (7, 33), (40, 70)):
            inputs = test_native_linear.make_inputs(1, tokens, 3, n, block_size)
            for op in ("Linear", "PreciseLinear"):
                products.update(test_native_linear.run(models, inputs, op).tobytes())
            for bits in (8, 4):
                experts = (5, 2, block_size)
                inputs = test_native_experts.make_inputs(1, tokens, *experts, d=1, f=3, bits=bits)
                test_native_experts.run(models, inputs)
            inputs = float_inputs(1, max(tokens, 1), tokens + 77, h=3, n=13, r=6, c=block_size, v=9)
            for cache_type in ("float32", "float16", "int8"):
                cached = with_cache(inputs, cache_type)
                test_native_attention.run(models, int8_inputs(cached, block_size))
    print(isa, products.hexdigest())
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A library built with sanitizers, and what to load before Python."""
    path = tmp_path_factory.mktemp("sanitized") / "libshoal_kernels.so"
    try:
        build_library(path, FLAGS)
    except KernelBuildError as error:
        pytest.skip(f"the compiler has no sanitizers: {error}")
    # libstdc++ too: the sanitizer looks for the function that throws when it is loaded.
    runtimes = [runtime_file(name) for name in ("libasan.so", "libstdc++.so.6")]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        pytest.skip("the sanitizer runtime of this compiler cannot be loaded before Python")
    return path, " ".join(runtimes)


def runtime_file(name: str) -> str:
    """Where the compiler keeps a library; only the name if it has none."""
    command = [*shlex.split(find_compiler()), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run_sanitized(sanitized: tuple[Path, str], *arguments: str) -> list[str]:
    """Lines that Python prints when it runs these arguments with the library in argv[1]."""
    path, runtime = sanitized
    environment = os.environ | {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and onnxruntime keep memory until the end
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    environment.pop("SHOAL_ISA", None)
    command = [sys.executable, *arguments[:2], str(path), *arguments[2:]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_no_kernel_leaves_its_memory(sanitized: tuple[Path, str], tmp_path: Path) -> None:
    checksums = dict(
        line.split() for line in run_sanitized(sanitized, "-c", EXERCISE, str(tmp_path))
    )
    assert "portable" in checksums
    assert len(set(checksums.values())) == 1, checksums


def test_damaged_inputs_are_refused(
    sanitized: tuple[Path, str], library: KernelLibrary, tmp_path: Path
) -> None:
    arguments = ("-m", "tests.kernels.fuzz", str(tmp_path), "--cases", "300")
    lines = [line.split(maxsplit=2) for line in run_sanitized(sanitized, *arguments)]
    counts = {(op, outcome): int(count) for count, op, outcome in lines}
    for op in library.ops:
        assert counts[op, "ran"] >= 5
        assert counts[op, "refused by the kernel"] >= 10
