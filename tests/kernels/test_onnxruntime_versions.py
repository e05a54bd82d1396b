"""The versions of onnxruntime: which are promised, and what the library says to one too old."""

from __future__ import annotations

import ctypes
import re
import tomllib
from pathlib import Path

import onnxruntime
import pytest

from shoal.runtime.kernels.build import SOURCES
from shoal.runtime.kernels.library import KernelLibrary
from shoal.runtime.machine.requirements import ONNXRUNTIME_NEEDED, version_pair

pytestmark = pytest.mark.dependencies

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
ERROR_CODE, MESSAGE = ctypes.c_int, ctypes.c_char_p


def asked_version() -> int:
    """Version of the interface that the library asks for."""
    text = (SOURCES / "ort_api.h").read_text(encoding="utf-8")
    found = re.search(r"kApiVersion = (\d+);", text)
    assert found is not None
    return int(found.group(1))


def test_the_oldest_onnxruntime_is_declared_once_and_offers_the_interface() -> None:
    requirements = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    (declared,) = (text for text in requirements if text.startswith("onnxruntime"))
    oldest = ".".join(map(str, ONNXRUNTIME_NEEDED))
    assert declared == f"onnxruntime>={oldest}"
    # Version 1.N of onnxruntime has version N of the interface and all before.
    assert asked_version() <= ONNXRUNTIME_NEEDED[1]
    assert version_pair(onnxruntime.__version__) >= ONNXRUNTIME_NEEDED  # what all tests ran with


class OldRuntime:
    """An onnxruntime that knows the interface up to a version, as the library is shown it."""

    def __init__(self, known: int) -> None:
        self.asked: list[int] = []
        self.messages: list[bytes] = []

        def create_status(code: int, message: bytes) -> int:
            self.messages.append(message)
            return 1  # stands for the error object

        def get_api(version: int) -> int | None:
            self.asked.append(version)
            return ctypes.addressof(self._table) if version <= known else None

        self._version = ctypes.create_string_buffer(b"1.17.3")
        self._functions = (
            ctypes.CFUNCTYPE(ctypes.c_void_p, ERROR_CODE, MESSAGE)(create_status),
            ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(get_api),
            ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(self._version)),
        )
        create, get, version = (ctypes.cast(f, ctypes.c_void_p) for f in self._functions)
        self._table = (ctypes.c_void_p * 1)(create)
        self.base = (ctypes.c_void_p * 2)(get, version)


def test_an_onnxruntime_that_is_too_old_is_told_so(library: KernelLibrary) -> None:
    runtime = OldRuntime(known=asked_version() - 1)
    register = ctypes.CDLL(str(library.path)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, runtime.base) == 1
    assert runtime.asked == [asked_version(), 1]
    (message,) = runtime.messages
    assert message.startswith(b"onnxruntime 1.17.3 is too old for the shoal kernels")
    assert b"\n" not in message
