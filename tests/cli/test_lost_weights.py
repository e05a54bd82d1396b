"""A bundle whose weights are cut while they are mapped: one line, not a core dump."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.runtime import end_on_lost_weights
from shoal.runtime.kernels.library import find_library

pytestmark = pytest.mark.skipif(
    isinstance(find_library(), str), reason="the library of the native kernels is not installed"
)

RUN = [sys.executable, "-m", "shoal.runtime.commands.cli", "run"]

IN_A_LIBRARY = """
import mmap, os, resource, signal, sys
from shoal.runtime import end_on_lost_weights

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
assert end_on_lost_weights() and end_on_lost_weights()
with open(sys.argv[1], "r+b") as file:
    file.write(bytes(1 << 16))
    file.flush()
    data = mmap.mmap(file.fileno(), 0)
    if sys.argv[2] == "deleted":
        os.unlink(file.name)
    file.truncate(0)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGBUS)
    data[1 << 15]
"""


def test_the_library_is_of_these_sources() -> None:
    assert end_on_lost_weights(), "built before this could be asked for: make kernels"


@pytest.mark.parametrize("kernels", ["native", "portable"])
def test_a_bundle_that_is_cut_while_it_runs_is_named(
    kernels: str, int8_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(int8_bundle, tmp_path / "bundle")
    command = [*RUN, str(bundle), "--loop", "--max-new-tokens", "2", "--kernels", kernels]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"And God\n")
        process.stdin.flush()
        while process.stdout.read(1) != b"\0":
            pass
        os.truncate(bundle / "weights.bin", 4096)
        process.stdin.write(b"In the beginning\n")
        process.stdin.close()
        last = process.stderr.read().decode().splitlines()[-1]
    assert process.returncode == 1
    assert last == (
        f"error: {bundle / 'weights.bin'}: was cut or changed while in use, or its disk fails; "
        "export or copy the bundle again"
    )


@pytest.mark.parametrize(
    ("name", "how", "status", "text"),
    [
        ("weights.bin", "cut", 1, "weights.bin: was cut or changed"),
        ("weights.bin", "deleted", 1, "weights.bin: was cut or changed"),
        ("other.bin", "cut", -signal.SIGBUS, ""),
        ("weights.bin", "killed", -signal.SIGBUS, ""),
    ],
)
def test_only_lost_weights_are_taken_for_that(
    name: str, how: str, status: int, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).touch()
    done = subprocess.run(
        [sys.executable, "-c", IN_A_LIBRARY, str(tmp_path / name), how],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert text in done.stderr
    assert done.stderr.count("\n") == bool(text)


def test_whoever_handled_bus_errors_before_still_does(tmp_path: Path) -> None:
    (tmp_path / "other.bin").touch()
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", IN_A_LIBRARY, tmp_path / "other.bin", "cut"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr
