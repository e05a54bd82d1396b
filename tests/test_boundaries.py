"""Who may import whom: export -> graphs <- runtime, and what a device never needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Refuses the modules named in argv[1], imports those named in argv[2], lists what got loaded.
BLOCKER = """
import importlib, importlib.abc, sys

blocked = tuple(sys.argv[1].split(","))

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == root or name.startswith(root + ".") for root in blocked):
            raise ModuleNotFoundError(f"{name} is out of bounds here", name=name)
        return None

sys.meta_path.insert(0, Blocker())
for name in sys.argv[2].split(","):
    importlib.import_module(name)
print(",".join(sys.modules))
"""

TORCH_SIDE = (
    *("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"),
    *("transformers", "huggingface_hub"),
)
ADAPTER = "shoal.export.optimum"
REGISTER_FILE = ROOT / "export" / "optimum" / "register" / "register_shoal.py"


def modules_of(package: str, folder: str = "") -> list[str]:
    base = ROOT / package / folder
    paths = [path.relative_to(ROOT).with_suffix("") for path in base.rglob("*.py")]
    dotted = ["shoal." + ".".join(path.parts).removesuffix(".__init__") for path in paths]
    return sorted(dotted)


def is_adapter(name: str) -> bool:
    """Whether a module is of shoal.export.optimum, which sees both sides and whom nobody sees."""
    return name == ADAPTER or name.startswith(ADAPTER + ".")


def loaded_by(modules: list[str], blocked: tuple[str, ...]) -> set[str]:
    command = [sys.executable, "-c", BLOCKER, ",".join(blocked), ",".join(modules)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.strip().split(","))


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_runtime_imports_without_torch_onnx_and_export() -> None:
    evaluation = "shoal.runtime.lm_eval"
    modules = [name for name in modules_of("runtime") if name != evaluation]
    loaded_by(modules, (*TORCH_SIDE, "shoal.export", "lm_eval"))
    loaded_by([evaluation], (*TORCH_SIDE, "shoal.export"))


def test_graphs_import_neither_torch_nor_onnxruntime_nor_their_users() -> None:
    blocked = ("torch", "transformers", "onnxruntime", "shoal.export", "shoal.runtime")
    loaded_by(modules_of("graphs"), blocked)


def test_what_runtime_takes_of_graphs_needs_numpy_at_most() -> None:
    light = ["shoal.graphs.contract", "shoal.graphs.manifest_reader", "shoal.graphs.errors"]
    light += modules_of("graphs", "ops")
    loaded_by(light, (*TORCH_SIDE, "onnxruntime", "rich", "tokenizers", "jinja2"))


def test_export_imports_without_onnxruntime_transformers_and_runtime() -> None:
    modules = [name for name in modules_of("export") if not is_adapter(name)]
    loaded_by(modules, ("transformers", "huggingface_hub", "onnxruntime", "shoal.runtime"))


def test_the_command_line_starts_without_numpy_and_rich() -> None:
    loaded = loaded_by(["shoal.runtime.commands.cli"], (*TORCH_SIDE, "shoal.export", "onnxruntime"))
    assert not loaded & {"numpy", "rich", "tokenizers", "jinja2"}


@pytest.mark.parametrize("package", ["export", "graphs", "runtime"])
def test_no_package_is_loaded_under_its_bare_name(package: str) -> None:
    loaded = loaded_by([f"shoal.{package}"], ("nothing",))
    assert not loaded & {"export", "graphs", "runtime"}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("runtime", ("shoal.export", *TORCH_SIDE)),
        ("graphs", ("shoal.export", "shoal.runtime", "torch", "onnxruntime")),
        ("export", ("shoal.runtime", "transformers")),
    ],
)
def test_no_import_statement_crosses_the_boundary(package: str, forbidden: tuple[str, ...]) -> None:
    crossing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        if not path.is_relative_to(ROOT / "export" / "optimum")
        for name in sorted(imported_names(path))
        if is_adapter(name)
        or any(name == root or name.startswith(root + ".") for root in forbidden)
    ]
    assert not crossing


def test_what_a_config_means_is_read_without_tensors_and_graphs() -> None:
    names = {
        name
        for path in (ROOT / "export" / "config").rglob("*.py")
        for name in imported_names(path)
        if name.startswith("shoal.") and not name.startswith("shoal.export.config")
    }
    assert {name for name in names if not name.startswith("shoal.graphs.errors")} == set()


def test_optimum_cli_starts_without_heavy_imports() -> None:
    heavy = {
        name
        for name in imported_names(REGISTER_FILE)
        if is_adapter(name) or name.partition(".")[0] in {*TORCH_SIDE, "numpy", "onnxruntime"}
    }
    assert not heavy


def test_only_session_imports_onnxruntime() -> None:
    users = [
        path.name
        for path in (ROOT / "runtime").rglob("*.py")
        if any(name.partition(".")[0] == "onnxruntime" for name in imported_names(path))
    ]
    assert users == ["session.py"]
