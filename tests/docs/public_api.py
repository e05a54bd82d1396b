"""The public names of shoal, read from the sources: nothing is imported, so no extra is needed."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True, kw_only=True)
class PublicName:
    """A class or function, and the text of the file that defines it."""

    definition: Definition
    source: str

    @property
    def name(self) -> str:
        """As users write it."""
        return self.definition.name


def module_docstring(module: str) -> str:
    """What a module or package says of itself."""
    return ast.get_docstring(_parse(module)) or ""


def exported_names(module: str) -> set[str]:
    """What users import from a module: the names of ``__all__``, else what it defines itself."""
    tree = _parse(module)
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    defined = {node.name for node in tree.body if isinstance(node, Definition)}
    return {name for name in defined if not name.startswith("_")}


def public_methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    """Methods and properties of a class that have no underscore, in the order of its source."""
    methods = [statement for statement in node.body if isinstance(statement, ast.FunctionDef)]
    return [method for method in methods if not method.name.startswith("_")]


def find(module: str, name: str) -> PublicName:
    """The definition of a name that a module defines or imports."""
    tree = _parse(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return find(node.module or "", name)
    for node in tree.body:
        if isinstance(node, Definition) and node.name == name:
            return PublicName(definition=node, source=_file(module).read_text(encoding="utf-8"))
    raise LookupError(f"{module} neither defines nor imports {name}")


def _parse(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _file(module: str) -> Path:
    place = ROOT.joinpath(*module.removeprefix("shoal.").split("."))
    package = place / "__init__.py"
    return package if package.exists() else place.with_suffix(".py")
