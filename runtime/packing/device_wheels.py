"""The wheels a device needs: found in a folder, or fetched by pip for another machine."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from shoal.graphs.errors import InputError, RuntimeFailure

MACHINES = ("aarch64", "x86_64")
_NEWEST_GLIBC = 28
"""Wheels for glibc 2.28 or older are taken: what onnxruntime asks for, Debian 10 and newer."""


def find_wheels(folder: Path) -> list[Path]:
    """All wheels in a folder, in order of their names.

    Raises:
        InputError: shoal's own is not among them.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not any(wheel.name.startswith("shoal-") for wheel in wheels):
        raise InputError(
            f"{folder}: expected a wheel of shoal, found {len(wheels)} other wheels; make one with "
            "`make wheels`"
        )
    return wheels


def fetch_wheels(own: Path, target: Path, *, machine: str, python: str) -> list[Path]:
    """Let pip download shoal's dependencies for another machine.

    Args:
        own: a folder with shoal's wheel for that machine, or the one for any machine.
        target: an empty folder; shoal's wheel is put there too.
        machine: one of ``MACHINES``.
        python: version of its Python: "3.11".

    Raises:
        InputError: shoal's wheel is not there.
        RuntimeFailure: there is no pip, or it fails.
    """
    version = importlib.metadata.version("shoal")
    names = (f"shoal-{version}-*_{machine}.whl", f"shoal-{version}-*-any.whl")
    found = [wheel for name in names for wheel in sorted(own.glob(name))]
    if not found:
        raise InputError(
            f"{own}: expected a wheel of shoal {version} for {machine}, found none; make one with "
            "`make wheels`"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += [*pip_platform(machine, python), "--dest", str(target), "--find-links", str(own)]
    done = subprocess.run([*command, str(found[0])], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.splitlines()
        reason = next((line for line in lines if line.startswith("ERROR")), "no message")
        raise RuntimeFailure(
            f"wheels: pip could not fetch all for {machine} and Python {python} ({reason}); check "
            "the network and the version"
        )
    return find_wheels(target)


def pip_platform(machine: str, python: str) -> list[str]:
    """Options that make pip choose wheels for another machine and Python.

    pip does not know that a wheel for an old glibc runs on a newer one, so each is named.
    """
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(_NEWEST_GLIBC, 16, -1)]
    options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    return options + [f"--platform={tag}" for tag in (*tags, f"manylinux2014_{machine}")]
