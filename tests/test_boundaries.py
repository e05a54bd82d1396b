"""Who may import whom: export -> graphs <- runtime, and what a device never needs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.import_graph import ROOT, circles, import_graph, imported_names, sources, wing_of

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
# A wing is a folder or, where it lies loose, a module. It may import the wings of its row and
# itself, and shoal.graphs. What no row names (export's loose modules, runtime.commands) may import
# every wing of its package, and no wing may import it. The most specific row counts.
WINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "export": {
        "config": (),
        "tokenizer": (),
        "checkpoint": ("config", "tokenizer"),
        "checkpoint.layer_sources": ("checkpoint", "config", "model"),  # a source for each weight
        "model": ("config",),
        "model.load": ("checkpoint", "config", "model"),  # modules with a checkpoint's weights
        "model.subject": ("checkpoint", "config", "model"),
        "training": ("config", "model"),
        "tracing": ("config", "model"),
        "writing": ("checkpoint",),
        "transfer": ("checkpoint", "config", "writing"),
        "fidelity": ("config", "model", "tokenizer", "transfer"),
        "fidelity.measured_pass": ("config", "fidelity", "transfer", "writing.journal"),
    },
    "runtime": {
        "atomic_file": (),
        "extras": (),
        "sampling": (),
        "units": (),
        "machine": (),
        "bundle": ("machine",),
        "kernels": ("machine",),
        "engine": ("atomic_file", "bundle", "kernels", "machine", "units"),
        "residency": ("engine", "machine"),
        "drafting": ("bundle", "engine"),
        "text": ("bundle",),
        "generate": ("drafting", "engine", "sampling", "text"),
        "model": ("bundle", "drafting", "engine", "generate", "sampling", "text"),
        "opening": ("bundle", "engine", "model"),
        "context_pool": ("engine", "model"),
        "dialogue": ("engine", "generate", "model", "sampling"),
        "server": ("context_pool", "dialogue", "engine", "generate", "model"),
        "bench": ("engine", "generate", "machine", "model", "opening", "sampling"),
        "evaluation": (
            "atomic_file",
            "engine",
            "extras",
            "generate",
            "model",
            "opening",
            "sampling",
            "text",
            "units",
        ),
        "lm_eval": ("engine", "evaluation", "opening"),
        "packing": ("atomic_file", "bundle", "machine"),
        "console": ("units",),
    },
}
ABOVE_THE_WINGS = {"export": ("optimum",), "runtime": ("commands",)}

# What belongs to one wing alone.
OWNERS = {
    "argparse": ("runtime.commands",),
    "rich": ("runtime.console",),
    "jinja2": ("runtime.text",),
    "onnxruntime": ("runtime.engine.session",),
    "http": ("runtime.server",),
}
UNKNOWN = {
    "export.config": ("torch", "numpy", "safetensors", "onnx", "onnx_ir", "onnxscript"),
    "export.tokenizer": ("torch", "safetensors", "onnx", "onnx_ir", "onnxscript"),
    "export.checkpoint": ("onnx", "onnx_ir", "onnxscript"),
    "export.model": ("safetensors", "onnx", "onnx_ir"),
    "export.fidelity": ("onnx", "onnx_ir", "onnxscript"),
    "graphs.ops": ("shoal.graphs.passes", "shoal.graphs.manifest", "shoal.graphs.recipes"),
    "runtime.machine": ("shoal.graphs.manifest", "shoal.graphs.recipes"),
    "runtime.bench": ("sys",),  # sys.stdout: measuring is not printing
    "runtime.dialogue": ("sys",),
    "runtime.evaluation": ("sys",),
}
MOST_LOOSE_MODULES = {"export": 10, "runtime": 12}
MOST_LINES = 400

ADAPTER = "shoal.export.optimum"
OPTIMUM_COMMAND = ROOT / "export" / "optimum" / "command"


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
    allowed = ("shoal.graphs.errors", "shoal.graphs.input_files", "shoal.graphs.message_parts")
    assert {name for name in names if not name.startswith(allowed)} == set()


def test_optimum_cli_starts_without_heavy_imports() -> None:
    heavy = {
        name
        for path in OPTIMUM_COMMAND.rglob("*.py")
        for name in imported_names(path)
        if is_adapter(name) or name.partition(".")[0] in {*TORCH_SIDE, "numpy", "onnxruntime"}
    }
    assert not heavy


@pytest.mark.parametrize("package", WINGS)
def test_a_wing_imports_only_what_its_row_names(package: str) -> None:
    rows = {
        f"{package}.{name}": [f"{package}.{other}" for other in known]
        for name, known in WINGS[package].items()
    }
    crossing = [
        f"{name} imports {target}"
        for name, targets in import_graph().items()
        if (wing := wing_of(name, rows))
        for target in sorted(targets)
        if target.startswith(f"{package}.") and not wing_of(target, (wing, *rows[wing]))
    ]
    assert not crossing


@pytest.mark.parametrize("package", WINGS)
def test_every_folder_has_a_row_and_every_row_a_module(package: str) -> None:
    modules = {name.removeprefix(f"{package}.") for name in sources() if name != package}
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert folders - set(WINGS[package]) == set(ABOVE_THE_WINGS[package])
    assert set(WINGS[package]) <= modules


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": set[str]()}
    assert circles(graph) == ["b imports c", "c imports b"]


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not circles(import_graph())


def test_what_belongs_to_one_wing_is_used_nowhere_else() -> None:
    users = [
        f"{name} imports {library}"
        for name, path in sources().items()
        if not is_adapter(f"shoal.{name}")
        for library, owners in OWNERS.items()
        if any(other.partition(".")[0] == library for other in imported_names(path))
        and not wing_of(name, owners)
    ]
    assert not users


def test_a_wing_does_not_know_what_is_none_of_its_business() -> None:
    known = [
        f"{name} imports {other}"
        for name, path in sources().items()
        if (wing := wing_of(name, UNKNOWN))
        for other in imported_names(path)
        if any(other == root or other.startswith(root + ".") for root in UNKNOWN[wing])
    ]
    assert not known


@pytest.mark.parametrize("package", MOST_LOOSE_MODULES)
def test_few_modules_lie_loose_in_a_package(package: str) -> None:
    assert len(list((ROOT / package).glob("*.py"))) <= MOST_LOOSE_MODULES[package]


def test_no_module_outgrows_what_can_be_read_at_once() -> None:
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in sources().items()}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}
