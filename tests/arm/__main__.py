"""The runtime on emulated ARM processors: ``python -m tests.arm``, which ``make test-arm`` calls.

1. The emulator and an aarch64 Debian are put into a folder (build/arm, or what SHOAL_ARM_FOLDER
   names); no root is needed. tiny-v3 is exported and packed with all wheels that the device needs,
   which are installed from that file, as on a device without internet.
2. This machine answers with the bundles (answers.py, op_cases.py).
3. Each processor runs test_on_arm.py and some of the runtime's and kernels' own tests.
4. test_from_arm.py goes on here with the contexts that were saved there.

Emulation is 50 to 200 times slower than the machine, so each of the runtime's tests runs on one
processor, except slow ones and those that are only text or only Python. All of it took 350 s of
processor time, half of that on two cores.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.arm.answers import PACK, differences, write_answers
from tests.arm.op_cases import write_results
from tests.arm.sysroot import CPUS, Sysroot, SysrootError

from shoal.runtime.kernels.library import LIBRARY_FILE

ROOT = Path(__file__).parents[2]
TOOLS = (
    *("pytest", "iniconfig", "pluggy", "packaging", "pygments", "hypothesis", "sortedcontainers"),
    *("onnx", "ml_dtypes", "typing_extensions"),
)

# Exact whatever the processor, without hypothesis, in seconds: what a kernel must never get wrong.
KERNEL_TESTS = (
    "tests/kernels/test_kernel_library.py",
    "tests/kernels/test_native_linear.py",
    "tests/kernels/test_native_experts.py",
    "tests/kernels/test_native_attention.py",
)
# Whatever opens, refuses and keeps files. Not test_fit.py: qemu does not pass memory limits on.
FILE_TESTS = tuple(
    f"tests/runtime/{name}.py"
    for name in (
        "test_bundle",
        "engine/test_context_file",
        "test_context_pool",
        "machine/test_cores",
        "engine/test_latent_cache",
        "machine/test_memory",
        "test_model",
        "packing/test_pack",
        "test_privacy",
        "machine/test_requirements",
        "engine/test_session",
        "text/test_tokenizer",
    )
)
# Whatever computes.
MODEL_TESTS = ("tests/runtime/engine/test_context.py", "tests/runtime/test_generate.py")
# The longest first, so that none is left to run alone.
CHOSEN = {
    "neoverse-n1": MODEL_TESTS,
    "cortex-a76": FILE_TESTS,
    "max,sme=off": KERNEL_TESTS,
    "cortex-a72": KERNEL_TESTS,
}
# Searches of hundreds of cases and 4 bits beside bodies that unpack them (op_cases.py has a few
# dozen cases of both), a growing cache and process memory, and two tests that build a library.
TOO_SLOW = ("forms_agree", "any_changed_byte", "4_bits", "growing_the_cache", "anonymous_memory")
LEFT_OUT = (*TOO_SLOW, "no_compiler", "failed_build")
# What another processor shows: each instruction set runs the kernels' tests on one of them, the
# Neoverse-N1 has those of the Cortex-A76, and the wheel's library is what all of them load.
LEFT_TO_OTHERS = {
    "cortex-a72": ("[portable", "installed_wheel"),
    "cortex-a76": (),
    "neoverse-n1": ("kernels_give", "installed_wheel"),
    "max,sme=off": ("[neon", "installed_wheel"),
}


def main() -> int:
    """Prepare, run, compare; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.arm", description=__doc__)
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist", help="of make wheels")
    parser.add_argument("--cpu", choices=CPUS, action="append", help="only these processors")
    parser.add_argument("--workers", type=int, default=2, help="processors at a time")
    args = parser.parse_args()
    folder = Path(os.environ.get("SHOAL_ARM_FOLDER", ROOT / "build" / "arm")).absolute()
    try:
        sysroot = prepare(folder, args.wheels)
    except SysrootError as error:
        sys.stderr.write(f"error: test-arm: {error}\n")
        return 1
    with ThreadPoolExecutor(args.workers) as pool:
        passed = list(pool.map(lambda cpu: run_on(cpu, sysroot, folder), args.cpu or CHOSEN))
    if not args.cpu:
        passed.append(run_here(folder))
    return 0 if all(passed) else 1


def prepare(folder: Path, wheels: Path) -> Sysroot:
    """Everything that the processors need, made anew except what was downloaded."""
    start_s = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    sysroot = Sysroot(folder / "sysroot")
    with ThreadPoolExecutor(2) as pool:
        exports = pool.submit(export_bundles, folder)
        sysroot.set_up()
        sysroot.install_tools(TOOLS)
        exports.result()
    sysroot.install_device(pack_for_device(folder, wheels, sysroot.version))
    write_answers(folder / "bundles", folder)
    write_results(new_folder(folder / "ops"), LIBRARY_FILE, folder / "ops.npz")
    print(f"set up in {time.monotonic() - start_s:.0f} s", flush=True)
    return sysroot


def pack_for_device(folder: Path, wheels: Path, python: str) -> Path:
    """Pack as docs/deploy-arm.md says, and take out the wheels, which need no shoal yet."""
    pack = folder / PACK
    pack.unlink(missing_ok=True)
    arguments = ["pack", str(folder / "bundles" / "tiny-int8"), str(pack), "--wheels", str(wheels)]
    shoal(*arguments, "--fetch", "aarch64", "--python", python)
    taken_out = new_folder(folder / "taken-out")
    subprocess.run(["tar", "xf", str(pack), "-C", str(taken_out), "wheels"], check=True)
    return taken_out / "wheels"


def shoal(*arguments: str) -> None:
    """The command, as it is installed here."""
    command = [sys.executable, "-m", "shoal.runtime.commands.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SysrootError(f"shoal {arguments[0]}: {done.stderr.strip()}")


def export_bundles(folder: Path) -> None:
    """tiny-v3 in both kinds of weights."""
    for weights in ("fp32", "int8"):
        bundle = str(folder / "bundles" / f"tiny-{weights}")
        options = ["--weights", weights, "--no-fidelity", "--force"]
        shoal("export", "checkpoints/tiny-v3", bundle, *options)


def new_folder(folder: Path) -> Path:
    """The folder, empty."""
    if folder.exists():
        subprocess.run(["rm", "-r", str(folder)], check=True)
    folder.mkdir(parents=True)
    return folder


def run_on(cpu: str, sysroot: Sysroot, folder: Path) -> bool:
    """The tests on one processor; prints a line, and all of the output if something failed."""
    chosen = " and ".join(f"not {name}" for name in (*LEFT_OUT, *LEFT_TO_OTHERS[cpu]))
    tests = ["tests/arm/test_on_arm.py", *CHOSEN[cpu], "-k", chosen, "-m", "not slow"]
    python = sysroot.python(cpu)
    environment = environment_of(folder) | {
        "PYTHONPATH": str(sysroot.tools),
        "SHOAL_ARM_CPU": cpu,
    }
    what = f"{cpu} ({CPUS[cpu].stands_for})"
    passed = run_pytest(what, [str(python)], tests, environment, folder)
    if passed:
        print("\n".join(differences(folder, cpu)), flush=True)
    return passed


def run_here(folder: Path) -> bool:
    """What comes back from the processors, on this one."""
    tests = ["tests/arm/test_from_arm.py"]
    environment = environment_of(folder) | {"SHOAL_ARM_CPU": next(iter(CPUS))}
    return run_pytest("contexts back on x86", [sys.executable], tests, environment, folder)


def environment_of(folder: Path) -> dict[str, str]:
    """Settings of the tests."""
    return os.environ | {
        "SHOAL_ARM_FOLDER": str(folder),
        "SHOAL_TEST_BUNDLES": str(folder / "bundles"),
        "OMP_NUM_THREADS": "1",
    }


def run_pytest(
    what: str, python: list[str], tests: list[str], environment: dict[str, str], folder: Path
) -> bool:
    """Run tests in one process; whether all passed."""
    start_s = time.monotonic()
    temporary = folder / "tmp" / re.sub(r"\W+", "-", what)
    command = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp"]
    command += [str(temporary), "--durations=5", *tests]
    temporary.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).splitlines() or ["no output"]
    passed = done.returncode == 0
    print(f"{what}: {lines[-1]}, {time.monotonic() - start_s:.0f} s in all", flush=True)
    if not passed:
        print("\n".join(lines), flush=True)
    (folder / "tmp" / f"{temporary.name}.log").write_text("\n".join(lines))
    return passed


if __name__ == "__main__":
    sys.exit(main())
