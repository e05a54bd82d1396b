"""What a user gets from the commands, on the trained tiny model and on broken ones."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.runtime.commands.cli import main


@pytest.fixture(scope="session")
def measured_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-v3 in int8 as ``shoal export`` makes it by default, fidelity report included."""
    from shoal.export.pipeline import export_bundle

    bundle = tmp_path_factory.mktemp("measured") / "tiny-int8"
    export_bundle(tiny_checkpoint, bundle)
    return bundle


@pytest.fixture(scope="session")
def linkable_bundle(fp32_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float bundle to make hard links to: onnx.checker refuses weights that have any."""
    return Path(shutil.copytree(fp32_bundle, tmp_path_factory.mktemp("linkable") / "tiny-fp32"))


@pytest.fixture(scope="session")
def _graph_cache() -> Callable[..., Any]:
    from shoal.export.config.model_config import ModelConfig
    from shoal.export.tracing.assemble import Graphs, build_graphs

    cached = functools.cache(build_graphs)

    def build(config: ModelConfig, **options: Any) -> Graphs:
        return cached(dataclasses.replace(config, where=""), **options)

    return build


@pytest.fixture
def cached_graphs(_graph_cache: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of a config are built once per session: an export is mostly tracing."""
    monkeypatch.setattr("shoal.export.plan.build_graphs", _graph_cache)


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail and returns its one line on stderr, progress left aside."""

    def run(*argv: object, silent: bool = True) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if not _is_progress(line)]
        assert code == 1, captured.err
        assert captured.out == "" or not silent
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("error: ")
        assert lines[0].isprintable()
        assert "bug in shoal" not in lines[0]
        return lines[0].removeprefix("error: ")

    return run


def _is_progress(line: str) -> bool:
    return line.startswith(("export: ", "verify: ", "[opened in "))
