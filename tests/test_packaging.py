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

pytestmark = pytest.mark.dependencies

ROOT = Path(__file__).parents[1]
PACKAGES = ("export", "graphs", "runtime")
# A distribution of its own: its module is installed as optimum.commands.register.register_shoal.
OPTIMUM_COMMAND = ROOT / "export" / "optimum" / "command"


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
    (wheel,) = (sources / target).glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Path:
    return build_wheel(sources, "out")


@pytest.fixture(scope="module")
def optimum_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of shoal-optimum."""
    folder = tmp_path_factory.mktemp("optimum-command")
    for path in OPTIMUM_COMMAND.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return build_wheel(folder, "out")


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
    return {path for path in files if not path.is_relative_to(OPTIMUM_COMMAND)}


def folders_with_modules() -> set[str]:
    parents = {path.parent.relative_to(ROOT) for path in module_files()}
    return {"shoal." + ".".join(parent.parts) for parent in parents}


def test_the_package_list_names_every_folder_with_modules(project: dict[str, Any]) -> None:
    packages = set(project["tool"]["setuptools"]["packages"])
    assert packages == folders_with_modules()


def test_every_folder_with_modules_has_an_init() -> None:
    parents = {path.parent for path in module_files()}
    assert not [str(parent) for parent in parents if not (parent / "__init__.py").exists()]


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


def own_files(wheel: Path) -> set[str]:
    """What a wheel puts into site-packages, without what describes it."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_a_device_gets_no_folder_optimum(wheel: Path, optimum_command: Path) -> None:
    """With such a folder transformers takes optimum for installed."""
    assert {name.partition("/")[0] for name in own_files(wheel)} == {"shoal"}
    assert own_files(optimum_command) == {"optimum/commands/register/register_shoal.py"}


@pytest.fixture
def site(wheel: Path, optimum_command: Path, tmp_path: Path) -> Path:
    """Both wheels, unpacked as pip does."""
    for path in (wheel, optimum_command):
        with zipfile.ZipFile(path) as content:
            content.extractall(tmp_path / "site")
    return tmp_path / "site"


def optimum_cli(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S: without what an editable installation adds, so that the wheels are what is found.
    folders = [str(site), *(path for path in sys.path if "site-packages" in path)]
    return subprocess.run(
        [sys.executable, "-S", "-m", "optimum.commands.optimum_cli", *arguments],
        cwd=site.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_optimum_cli_exports_with_installed_wheels(site: Path, tiny_checkpoint: Path) -> None:
    options = ["--model", str(tiny_checkpoint), "bundle", "--dry-run", "--json"]
    done = optimum_cli(site, "export", "shoal", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] > 12e6


def test_a_shoal_that_does_not_fit_leaves_optimum_cli_alone(site: Path) -> None:
    assert "shoal" in optimum_cli(site, "export", "--help").stdout
    (site / "shoal" / "runtime" / "commands" / "options_export.py").write_text("")
    done = optimum_cli(site, "export", "--help")
    assert done.returncode == 0, done.stderr
    assert "shoal" not in done.stdout
    assert "optimum-cli export shoal is not there: cannot import name" in done.stderr


def test_optimum_cli_has_the_command_here() -> None:
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "shoal", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--weights" in done.stdout


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
