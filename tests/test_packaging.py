"""What is installed: every module in the wheel, and no more dependencies than a device needs."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from shoal.runtime.kernels.build import KernelBuildError, find_compiler

ROOT = Path(__file__).parents[1]
PACKAGES = ("export", "graphs", "runtime")
# Installed as optimum.commands.register, a namespace of many distributions.
REGISTER = ROOT / "export" / "optimum" / "register"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: building leaves files in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    built = shutil.ignore_patterns("__pycache__", "*.so")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    return folder


def build_wheel(sources: Path, target: str, **settings: str) -> Path:
    shutil.rmtree(sources / "build", ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--quiet", "--wheel-dir", target, "."]
    environment = os.environ | settings
    done = subprocess.run(
        command, cwd=sources, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (sources / target).glob("shoal-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Path:
    return build_wheel(sources, "out")


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def has_compiler() -> bool:
    try:
        find_compiler()
    except KernelBuildError:
        return False
    return True


def module_files() -> set[Path]:
    files = {path for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    return {path for path in files if not path.is_relative_to(REGISTER)}


def folders_with_modules() -> set[str]:
    parents = {path.parent.relative_to(ROOT) for path in module_files()}
    return {"shoal." + ".".join(parent.parts) for parent in parents}


def test_the_package_list_names_every_folder_with_modules(project: dict[str, Any]) -> None:
    packages = set(project["tool"]["setuptools"]["packages"])
    assert packages == folders_with_modules() | {"optimum.commands.register"}


def test_every_folder_with_modules_has_an_init() -> None:
    parents = {path.parent for path in module_files()}
    assert not [str(parent) for parent in parents if not (parent / "__init__.py").exists()]
    assert not (REGISTER / "__init__.py").exists()


def test_the_wheel_holds_every_module(wheel_names: set[str]) -> None:
    modules = {f"shoal/{path.relative_to(ROOT).as_posix()}" for path in module_files()}
    assert not modules - wheel_names


def test_the_wheel_holds_typing_marks_and_data(wheel_names: set[str]) -> None:
    data = {path.relative_to(ROOT) for path in (ROOT / "graphs" / "data").glob("*.txt")}
    expected = {f"shoal/{path.as_posix()}" for path in data}
    expected |= {f"shoal/{name}/py.typed" for name in PACKAGES}
    assert data
    assert not expected - wheel_names


def test_the_wheel_holds_the_kernels_and_their_sources(wheel_names: set[str]) -> None:
    folder = ROOT / "runtime" / "kernels"
    sources = {f"shoal/runtime/kernels/src/{path.name}" for path in (folder / "src").iterdir()}
    assert sources
    assert not sources - wheel_names
    # Without a compiler there is none, which `shoal doctor` tells.
    assert ("shoal/runtime/kernels/libshoal_kernels.so" in wheel_names) == has_compiler()


def test_a_wheel_fits_every_python_and_names_its_machine(wheel: Path, sources: Path) -> None:
    machine = f"linux_{platform.machine()}" if has_compiler() else "any"
    assert wheel.name.endswith(f"-py3-none-{machine}.whl")
    without = build_wheel(sources, "without", SHOAL_KERNELS="none")
    assert without.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(without).namelist() if name.endswith(".so")]


def test_the_wheel_holds_one_file_outside_shoal(wheel_names: set[str]) -> None:
    outside = {name for name in wheel_names if not name.startswith("shoal/")}
    assert {name for name in outside if ".dist-info/" not in name} == {
        "optimum/commands/register/register_shoal.py"
    }


def test_optimum_cli_exports_with_an_installed_wheel(
    wheel: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path / "site")
    # -S: without what an editable installation adds, so that the wheel is what is found.
    site = [str(tmp_path / "site"), *(path for path in sys.path if "site-packages" in path)]
    command = [sys.executable, "-S", "-m", "optimum.commands.optimum_cli", "export", "shoal"]
    command += ["--model", str(tiny_checkpoint), "bundle", "--dry-run", "--json"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] > 12e6


def test_the_base_install_is_what_a_device_needs(project: dict[str, Any]) -> None:
    names = {re.split(r"[<>=!~\[ ]", text)[0] for text in project["project"]["dependencies"]}
    assert names == {"numpy", "onnxruntime", "tokenizers", "jinja2", "rich"}


def test_transformers_is_for_optimum_and_development_only(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    users = [name for name, texts in extras.items() if any("transformers" in t for t in texts)]
    assert users == ["optimum", "dev"]


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_find_each_package_through_its_link(name: str) -> None:
    assert (ROOT / ".links" / "shoal" / name).resolve() == ROOT / name
