"""Which module of shoal imports which, read from the sources; imports inside functions count."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("export", "graphs", "runtime")


def name_of(path: Path) -> str:
    """The dotted name of a module below ``ROOT``, without ``shoal.``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_names(path: Path) -> set[str]:
    """Every name that a file imports, modules and what is taken from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@functools.cache
def sources() -> dict[str, Path]:
    """Every module of the three packages with its file."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {name_of(path): path for path in paths}


@functools.cache
def import_graph() -> dict[str, frozenset[str]]:
    """The modules of shoal that each module imports."""
    modules = sources()
    graph = {}
    for name, path in modules.items():
        found = {text.removeprefix("shoal.") for text in imported_names(path) if "shoal." in text}
        graph[name] = frozenset((found & set(modules)) - {name})
    return graph


def circles(graph: Mapping[str, AbstractSet[str]]) -> list[str]:
    """The imports that lie on circles, and those between circles."""
    left = {name: set(targets) for name, targets in graph.items()}
    while left:
        imported = set[str]().union(*left.values())
        ends = {name for name, targets in left.items() if not targets or name not in imported}
        if not ends:
            break
        left = {name: targets - ends for name, targets in left.items() if name not in ends}
    return [f"{name} imports {target}" for name in sorted(left) for target in sorted(left[name])]


def wing_of(module: str, wings: Iterable[str]) -> str:
    """The longest of ``wings`` that a module is or lies in, empty if there is none."""
    known = [wing for wing in wings if module == wing or module.startswith(wing + ".")]
    return max(known, key=len, default="")
