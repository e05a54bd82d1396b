"""Builds the native kernels from their C++ sources: ``python -m shoal.runtime.kernels.build``.

setup.py does the same during installation. One file is enough for all processors of an
architecture: the library chooses instructions when it is loaded.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIBRARY_NAME = "libshoal_kernels.so"
SOURCES = Path(__file__).parent / "src"

# c++2a: C++20 by the name that GCC 8 and 9 know, too.
# -ffp-contract=off: results must not depend on what a compiler fuses; fused multiply-adds are
# written out. Hidden visibility: nothing but the few exported functions can clash with others.
COMPILE_FLAGS = (
    "-std=c++2a",
    "-O3",
    "-fPIC",
    "-pthread",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
)
LINK_FLAGS = ("-shared", "-pthread")

_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}


class KernelBuildError(Exception):
    """The kernels could not be built; the message says why in one line."""


def find_compiler() -> str:
    """The C++ compiler: ``CXX``, or the first of c++, g++, clang++ there is.

    Raises:
        KernelBuildError: none is there.
    """
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["c++", "g++", "clang++"]:
        if shutil.which(shlex.split(name)[0]):
            return name
    raise KernelBuildError(
        f"native kernels: expected a C++20 compiler, found no {wanted or 'c++, g++ or clang++'}; "
        "install g++ or clang++, or set CXX"
    )


def build_library(target: Path, extra_flags: tuple[str, ...] = ()) -> None:
    """Compile the sources and put the library at ``target``.

    Args:
        target: The file to write, replaced at once when the build has succeeded.
        extra_flags: For compiler and linker, for example ``-fsanitize=address``.

    Raises:
        KernelBuildError: no compiler, or it fails.
    """
    compiler = shlex.split(find_compiler())
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = [(path, Path(folder) / f"{path.stem}.o") for path in sorted(SOURCES.glob("*.cc"))]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            commands = [
                [*compiler, *COMPILE_FLAGS, *extra_flags, "-c", str(source), "-o", str(made)]
                for source, made in objects
            ]
            list(pool.map(_run, commands))
        library = Path(folder) / target.name
        made_files = [str(made) for _, made in objects]
        _run([*compiler, *made_files, *LINK_FLAGS, *extra_flags, "-o", str(library)])
        library.replace(target)


def library_machine(library: Path) -> str | None:
    """The processor architecture a library is for, or None if it is none we know."""
    with library.open("rb") as file:
        header = file.read(20)
    if header[:4] != b"\x7fELF":
        return None
    return _ELF_MACHINES.get(int.from_bytes(header[18:20], "little"))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        raise KernelBuildError(f"native kernels: {command[0]} failed ({reason.strip()})")


def main() -> int:
    """Build the library beside the sources; 1 with a message if that fails."""
    try:
        build_library(Path(__file__).parent / LIBRARY_NAME)
    except KernelBuildError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
