"""Builds the wheels: ``python tests/wheels/build.py FOLDER``, which ``make wheels`` calls.

Three of shoal: with native kernels for x86-64, the same for aarch64 (with Debian's cross compiler),
and one without kernels for everything else; and one of shoal-optimum, the command of optimum-cli.
The kernel library uses no Python interface, so a wheel fits every Python 3. auditwheel reads from
the library how old a system may be; that must be at least as old as the one the installed
onnxruntime asks for.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPILERS = {
    "x86_64": os.environ.get("CXX_X86_64", "g++"),
    "aarch64": os.environ.get("CXX_AARCH64", "aarch64-linux-gnu-g++"),
}
PURE = "any"
OPTIMUM_COMMAND = Path("export", "optimum", "command")


class WheelError(Exception):
    """A wheel could not be built, or is not what it should be."""


def build_wheels(target: Path, machines: list[str]) -> list[Path]:
    """Build the wheels into ``target``, which holds no others of ours afterwards.

    Args:
        target: a folder, made if it is missing.
        machines: "x86_64", "aarch64", or "any" for the one without kernels.

    Raises:
        WheelError: a compiler is missing or fails, or the result needs too new a system.
    """
    for machine in machines:
        if machine != PURE and shutil.which(COMPILERS[machine]) is None:
            raise WheelError(
                f"no {COMPILERS[machine]}: install it (Debian: apt-get install "
                f"g++-{machine.replace('_', '-')}-linux-gnu) or name another compiler with "
                f"CXX_{machine.upper()}"
            )
    with tempfile.TemporaryDirectory() as folder:
        sources = copy_sources(Path(folder) / "sources")
        built = [build_wheel(sources, Path(folder) / machine, machine) for machine in machines]
        built.append(pip_wheel(sources / OPTIMUM_COMMAND, Path(folder) / "optimum"))
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("shoal*.whl"):
            old.unlink()
        return [Path(shutil.copy(wheel, target)) for wheel in built]


def copy_sources(folder: Path) -> Path:
    """A copy without anything built: building leaves files in the tree it builds."""
    built = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("export", "graphs", "runtime"):
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def build_wheel(sources: Path, folder: Path, machine: str) -> Path:
    """One wheel, tagged with the oldest systems it runs on."""
    shutil.rmtree(sources / "build", ignore_errors=True)
    setting = {"SHOAL_KERNELS": "none"} if machine == PURE else {"CXX": COMPILERS[machine]}
    wheel = pip_wheel(sources, folder, **setting)
    expected = f"-py3-none-{'any' if machine == PURE else f'linux_{machine}'}.whl"
    if not wheel.name.endswith(expected):
        raise WheelError(f"expected a wheel ...{expected}, built {wheel.name}: did {setting} fail?")
    return wheel if machine == PURE else tag_wheel(wheel, machine)


def pip_wheel(sources: Path, folder: Path, **setting: str) -> Path:
    """What pip builds of a distribution, alone in ``folder``."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--quiet", "--wheel-dir", str(folder), str(sources)]
    _output(command, {**os.environ, **setting})
    (wheel,) = folder.glob("*.whl")
    return wheel


def tag_wheel(wheel: Path, machine: str) -> Path:
    """Rename and relabel a wheel with what auditwheel finds it to be.

    Raises:
        WheelError: it needs libraries of its own, or a newer system than onnxruntime.
    """
    # The baseline of the architecture is what the compiler was told; anything above it is behind
    # the library's own look at the processor, which auditwheel cannot see.
    found = json.loads(_output([*_AUDITWHEEL, "show", "--json", str(wheel)]))
    if found["external_libs"]:
        raise WheelError(f"{wheel.name}: needs {found['external_libs']}, which manylinux lacks")
    tag = found["overall_tag"]
    newest = glibc_of_onnxruntime()
    if not tag.startswith("manylinux_") or glibc_of(tag) > newest:
        raise WheelError(
            f"{wheel.name}: expected to need glibc {newest[0]}.{newest[1]} at most, as onnxruntime "
            f"does, found {tag} ({found['versioned_symbols']})"
        )
    command = [sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, str(wheel)]
    return wheel.with_name(_output(command).split()[-1])


def glibc_of(tag: str) -> tuple[int, int]:
    """The glibc version in a platform tag: ``manylinux_2_28_aarch64`` is (2, 28)."""
    match = re.search(r"manylinux_(\d+)_(\d+)", tag)
    if match is None:
        raise WheelError(f"expected a manylinux tag, found {tag}")
    return int(match[1]), int(match[2])


def glibc_of_onnxruntime() -> tuple[int, int]:
    """The oldest glibc that the installed onnxruntime's wheel accepts."""
    text = importlib.metadata.distribution("onnxruntime").read_text("WHEEL") or ""
    return min(glibc_of(line) for line in text.splitlines() if "manylinux_" in line)


_AUDITWHEEL = [sys.executable, "-m", "auditwheel"]


def _output(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise WheelError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    """Build all and say what they are."""
    try:
        wheels = build_wheels(Path(sys.argv[1]), ["x86_64", "aarch64", PURE])
    except WheelError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for wheel in wheels:
        print(f"{wheel} ({wheel.stat().st_size / 1e6:.2f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
