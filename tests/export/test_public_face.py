"""What ``shoal.export`` and ``shoal.runtime`` offer by name."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from shoal import export
from shoal.graphs import errors

FACES = ["shoal.export", "shoal.runtime"]


def names_for_type_checkers(module: str) -> dict[str, str]:
    """Homes of the names that a package imports under TYPE_CHECKING."""
    path = importlib.import_module(module).__file__
    assert path is not None
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


@pytest.mark.parametrize("module", FACES)
def test_every_public_name_is_its_home_s_for_users_and_type_checkers(module: str) -> None:
    package = importlib.import_module(module)
    homes = names_for_type_checkers(module)
    assert sorted(homes) == sorted(package.__all__)
    for name, home in homes.items():
        assert getattr(package, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(package, "nonsense")  # noqa: B009


def test_every_error_that_an_export_announces_has_a_public_name() -> None:
    announced = (export.export_bundle.__doc__ or "").partition("Raises:")[2]
    named = [line.partition(":")[0].strip() for line in announced.strip().splitlines()]
    raised = [getattr(errors, name) for name in named]
    assert len(raised) == 4
    assert {"ShoalError", *named} <= set(export.__all__)
    assert all(issubclass(error, export.ShoalError) for error in raised)


def test_errors_can_be_caught_without_the_extra() -> None:
    code = (
        "import sys\n"
        "from shoal.export import ConfigError, ShoalError\n"
        "assert issubclass(ConfigError, ShoalError)\n"
        "assert not {'torch', 'onnx', 'safetensors'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
