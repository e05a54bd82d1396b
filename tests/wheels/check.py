"""Installs the wheels into a clean environment and runs a bundle, as a user without a compiler.

``python tests/wheels/check.py FOLDER [BUNDLE]``, which ``make test-wheels`` calls: the wheel for
this machine and the one without kernels. (``make test-arm`` does it with the one for aarch64.)
The wheel of optimum-cli's command brings that and nothing else.
Reports what an installation takes on disk and how long importing it takes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMPT = "And God said"
NOT_ON_A_DEVICE = ("torch", "onnx", "safetensors", "transformers", "optimum", "pytest")

# Processor seconds, not wall time: other work on the machine does not count. Best of a few runs.
IMPORT_S = """
import time
import onnxruntime
start_s = time.process_time()
from shoal.runtime import open_bundle
print(time.process_time() - start_s)
"""
ONNXRUNTIME_S = """
import time
start_s = time.process_time()
import onnxruntime
print(time.process_time() - start_s)
"""


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with nothing on the path: no compiler can be found."""
    with tempfile.TemporaryDirectory() as empty:
        return subprocess.run(
            [str(python), "-I", *arguments],
            cwd=empty,
            env={"PATH": empty, "HOME": empty},
            capture_output=True,
            text=True,
            check=False,
        )


def check(condition: bool, message: str) -> None:
    """Stop with one line unless what should be is."""
    if not condition:
        sys.exit(f"error: wheels: {message}")


def install(python: Path, *arguments: str) -> None:
    """Let the environment's pip install something."""
    command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    subprocess.run(command, check=True)


def answer(python: Path, bundle: Path, kernels: str) -> subprocess.CompletedProcess[str]:
    """What ``shoal run`` prints."""
    arguments = ["run", str(bundle), "--prompt", PROMPT, "--max-new-tokens", "16"]
    return run(python, "-m", "shoal.runtime.commands.cli", *arguments, "--kernels", kernels)


def check_wheel(python: Path, wheel: Path, bundle: Path, forms: tuple[str, ...]) -> None:
    """Install a wheel over the one before and compare its text with this tree's."""
    install(python, "--no-deps", "--force-reinstall", str(wheel))
    there = json.loads(run(python, "-c", _FIND.format(names=NOT_ON_A_DEVICE)).stdout)
    check(there == [], f"expected a clean environment, found {there}")
    for kernels in ("native", "portable"):
        found = answer(python, bundle, kernels)
        if kernels in forms:
            expected = answer(Path(sys.executable), bundle, kernels)
            check(expected.returncode == 0, f"this tree: {expected.stderr}")
            check(found.returncode == 0, f"{wheel.name}: {found.stderr}")
            check(found.stdout == expected.stdout, f"{wheel.name}: another text: {found.stdout}")
        else:
            check(found.returncode == 1, f"{wheel.name}: {kernels} kernels without a library")
            check("no native kernels installed" in found.stderr, found.stderr)
    print(f"{wheel.name}: runs {' and '.join(forms)} kernels, no compiler, no torch")


def check_optimum_command(python: Path, wheel: Path) -> None:
    """Install the command of optimum-cli, which a device does without."""
    install(python, "--no-deps", str(wheel))
    found = run(python, "-c", _FIND.format(names=("optimum.commands.register.register_shoal",)))
    check(json.loads(found.stdout) != [], f"{wheel.name}: optimum-cli would not find the command")
    print(f"{wheel.name}: puts the command where optimum-cli looks for it")


_FIND = """
import importlib.util, json
print(json.dumps([name for name in {names} if importlib.util.find_spec(name)]))
"""


def report(python: Path) -> None:
    """Print what an installation costs."""
    packages = next((python.parent.parent / "lib").glob("python3*")) / "site-packages"
    sizes = {
        folder.name: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for folder in packages.iterdir()
        if folder.is_dir() and not folder.name.startswith(("pip", "setuptools"))
    }
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:6]
    parts = ", ".join(f"{name} {sizes[name] / 1e6:.0f}" for name in largest)
    print(f"base install: {sum(sizes.values()) / 1e6:.0f} MB ({parts} MB)")
    for name, code in (("onnxruntime", ONNXRUNTIME_S), ("shoal.runtime beyond it", IMPORT_S)):
        fastest = min(float(run(python, "-c", code).stdout) for _ in range(5))
        print(f"import {name}: {fastest:.2f} s of processor time")


def main() -> None:
    """Check both wheels that this machine can run, and that of optimum-cli's command."""
    folder = Path(sys.argv[1])
    bundle = Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "build" / "tiny").absolute()
    check(bundle.is_dir(), f"{bundle}: no bundle; run make demo")
    (native,) = folder.glob("shoal-*_x86_64.whl")
    (pure,) = folder.glob("shoal-*-any.whl")
    (command,) = folder.glob("shoal_optimum-*.whl")
    environment = ROOT / "build" / "wheel-environment"
    shutil.rmtree(environment, ignore_errors=True)
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install(python, str(native))
    check_wheel(python, native, bundle, ("native", "portable"))
    report(python)
    check_wheel(python, pure, bundle, ("portable",))
    check_optimum_command(python, command)


if __name__ == "__main__":
    main()
