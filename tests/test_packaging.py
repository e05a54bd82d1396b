"""What is installed: every module in the wheel, and no more dependencies than a device needs."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel built from a copy of the sources: building leaves files in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    built = shutil.ignore_patterns("__pycache__", "*.so")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--quiet", "--wheel-dir", "out", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "out").glob("shoal-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def has_compiler() -> bool:
    try:
        find_compiler()
    except KernelBuildError:
        return False
    return True


def folders_with_modules() -> set[str]:
    parents = {path.parent for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    return {"shoal." + ".".join(parent.relative_to(ROOT).parts) for parent in parents}


def test_the_package_list_names_every_folder_with_modules(project: dict[str, Any]) -> None:
    assert set(project["tool"]["setuptools"]["packages"]) == folders_with_modules()


def test_every_folder_with_modules_has_an_init() -> None:
    parents = {path.parent for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert not [str(parent) for parent in parents if not (parent / "__init__.py").exists()]


def test_the_wheel_holds_every_module(wheel_names: set[str]) -> None:
    modules = {
        f"shoal/{path.relative_to(ROOT).as_posix()}"
        for name in PACKAGES
        for path in (ROOT / name).rglob("*.py")
    }
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


def test_the_wheel_holds_nothing_outside_shoal(wheel_names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"shoal"}


def test_the_base_install_is_what_a_device_needs(project: dict[str, Any]) -> None:
    names = {re.split(r"[<>=!~\[ ]", text)[0] for text in project["project"]["dependencies"]}
    assert names == {"numpy", "onnxruntime", "tokenizers", "jinja2", "rich"}


def test_transformers_is_a_development_dependency_only(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    users = [name for name, texts in extras.items() if any("transformers" in t for t in texts)]
    assert users == ["dev"]


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_find_each_package_through_its_link(name: str) -> None:
    assert (ROOT / ".links" / "shoal" / name).resolve() == ROOT / name
