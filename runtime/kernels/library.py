"""The native kernel library, if this installation has one."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

LIBRARY_FILE = Path(__file__).parent / "libshoal_kernels.so"
_BUILD_ADVICE = "build them with `python -m shoal.runtime.kernels.build` (needs g++ or clang++)"


@dataclass(frozen=True, kw_only=True)
class KernelLibrary:
    """What the library says about itself."""

    path: Path
    ops: tuple[str, ...]  # ops with a native kernel; the others run through their bodies
    isa: str  # instruction set in use: "portable", "avx2", "avx512vnni"
    isas: tuple[str, ...]  # what SHOAL_ISA can name on this processor, best first


def find_library(path: Path = LIBRARY_FILE) -> KernelLibrary | str:
    """The library, or one line that says why there is none and what to do."""
    if not path.is_file():
        return f"no native kernels installed; {_BUILD_ADVICE}"
    return _read(path)


def end_on_lost_weights() -> bool:
    """End this process with a line and exit status 1 when weights in use are cut or unreadable.

    Weights are mapped. When their file is cut meanwhile, or its disk fails, the system sends SIGBUS
    to whatever thread reads them, and the process dies of it: nothing can be computed without the
    weights, and there is no place to raise an exception. After a call of this function, which the
    command ``shoal`` makes, the process ends with a line on stderr that names the file. It ends at
    once: buffers are not flushed. A SIGBUS for any other reason has the effect it had before.

    Returns:
        Whether it holds: False where the library of the native kernels is not installed.
    """
    if isinstance(find_library(), str):
        return False
    function = getattr(_open(LIBRARY_FILE), "shoal_end_on_lost_weights", None)
    if function is None:  # a library of an older build
        return False
    function.restype = ctypes.c_bool
    return bool(function())


@functools.cache
def _open(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def _read(path: Path) -> KernelLibrary | str:
    try:
        library = _open(path)
        texts = {}
        for name in ("shoal_op_names", "shoal_isa_name", "shoal_isa_names"):
            function = library[name]
            function.restype = ctypes.c_char_p
            texts[name] = function()
    except (OSError, AttributeError) as error:
        return f"{path}: cannot be loaded ({' '.join(str(error).split())}); {_BUILD_ADVICE}"
    isas = texts["shoal_isa_names"].decode()
    if texts["shoal_isa_name"] is None:
        return f"SHOAL_ISA: expected one of {isas} on this processor; unset it to take the best"
    return KernelLibrary(
        path=path,
        ops=tuple(texts["shoal_op_names"].decode().split(",")),
        isa=texts["shoal_isa_name"].decode(),
        isas=tuple(isas.split(",")),
    )
