"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.runtime.kernels.build import KernelBuildError, build_library, find_compiler

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g")

# Runs every op with odd shapes, for few and many tokens, on the library in argv[1].
EXERCISE = """
import sys
from pathlib import Path
from tests.graphs.one_op import OneOpModels
from tests.graphs.test_op_latent_attention import float_inputs, int8_inputs, with_cache
from tests.kernels import test_native_attention, test_native_experts, test_native_linear

models = OneOpModels(Path(sys.argv[2]), Path(sys.argv[1]), threads=2)
for block_size in (16, 32, 64, 256):
    for tokens, n in ((0, 3), (1, 5), (7, 33), (40, 70)):
        inputs = test_native_linear.make_inputs(1, tokens, 3, n, block_size)
        test_native_linear.run(models, inputs)
        inputs = test_native_experts.make_inputs(1, tokens, 5, 2, block_size, d=1, f=3)
        test_native_experts.run(models, inputs)
        inputs = float_inputs(1, max(tokens, 1), tokens + 77, h=3, n=13, r=6, c=block_size, v=9)
        for cache_type in ("float32", "float16", "int8"):
            cached = with_cache(inputs, cache_type)
            test_native_attention.run(models, int8_inputs(cached, block_size))
print("clean")
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A library built with sanitizers, and the runtime to load before Python."""
    path = tmp_path_factory.mktemp("sanitized") / "libshoal_kernels.so"
    try:
        build_library(path, FLAGS)
    except KernelBuildError as error:
        pytest.skip(f"the compiler has no sanitizers: {error}")
    command = [find_compiler(), "-print-file-name=libasan.so"]
    runtime = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("the sanitizer runtime of this compiler cannot be loaded before Python")
    return path, runtime


@pytest.mark.parametrize("isa", ["avx512vnni", "avx2", "portable"])
def test_no_kernel_leaves_its_memory(
    sanitized: tuple[Path, str], library_isas: tuple[str, ...], tmp_path: Path, isa: str
) -> None:
    if isa not in library_isas:
        pytest.skip(f"this processor has no {isa}")
    path, runtime = sanitized
    environment = os.environ | {
        "SHOAL_ISA": isa,
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and onnxruntime keep memory until the end
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", EXERCISE, str(path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "clean"
