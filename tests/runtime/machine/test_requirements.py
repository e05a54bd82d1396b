from __future__ import annotations

import platform
import struct
import subprocess
import sys

import pytest

from shoal.graphs.errors import RuntimeFailure
from shoal.runtime.machine.requirements import check_machine, onnxruntime_error

# Stands in for the installed onnxruntime, then opens a bundle through the command.
WITH_ONNXRUNTIME = """
import sys, types
{setup}
from shoal.runtime.commands.cli import main
sys.exit(main(["run", "nowhere", "--prompt", "x"]))
"""


def test_this_machine_will_do() -> None:
    check_machine()


def test_32_bit_arm_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(struct, "calcsize", lambda code: 4)
    monkeypatch.setattr(platform, "machine", lambda: "armv7l")
    with pytest.raises(RuntimeFailure, match=r"32-bit on armv7l; .*64-bit Raspberry Pi OS"):
        check_machine()


def test_a_32_bit_system_on_a_64_bit_board_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(struct, "calcsize", lambda code: 4)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(RuntimeFailure, match="32-bit on aarch64"):
        check_machine()


def test_big_endian_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(RuntimeFailure, match="s390x is big-endian here"):
        check_machine()


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (None, "is not installed"),
        ("1.30.0", "1.30.0 is older than 1.32"),
        ("0.9", "older than 1.32"),
    ],
)
def test_wrong_onnxruntime_says_what_to_install(version: str | None, text: str) -> None:
    error = onnxruntime_error(version)
    assert error is not None
    assert text in error
    assert "pip install" in error


@pytest.mark.parametrize("version", ["1.32.0", "1.33", "2.0.0.dev1"])
def test_new_enough_onnxruntime_is_none(version: str) -> None:
    assert onnxruntime_error(version) is None


@pytest.mark.parametrize(
    ("setup", "text"),
    [
        ("sys.modules['onnxruntime'] = None", "onnxruntime cannot be imported (import of"),
        (
            "old = sys.modules['onnxruntime'] = types.ModuleType('onnxruntime')\n"
            "old.__version__ = '1.20.1'",
            "onnxruntime 1.20.1 is older than 1.32",
        ),
        (
            "import ctypes, struct; struct.calcsize = lambda code, real=struct.calcsize: "
            "4 if code == 'P' else real(code)\nsys.modules['onnxruntime'] = None",
            "bundles need a 64-bit Python, this one is 32-bit",
        ),
    ],
)
def test_the_command_says_it_in_one_line(setup: str, text: str) -> None:
    script = WITH_ONNXRUNTIME.format(setup=setup)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
