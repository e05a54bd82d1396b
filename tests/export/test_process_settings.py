"""An export leaves the process as it was; the command chooses settings for the whole process."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.export import process_settings
from shoal.export.model.subject import CheckpointSubject
from shoal.export.pipeline import export_bundle
from shoal.export.tracing.templates import trace_templates
from shoal.export.verify import verify_against_checkpoint
from shoal.runtime.commands.cli import main


def settings() -> dict[str, Any]:
    """What a program that uses shoal may have set for itself."""
    loggers = {
        name: (logger.level, logger.disabled, logger.propagate)
        for name, logger in list(logging.Logger.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and not name.startswith("torch.__trace")
    }
    return {
        "loggers": {name: found for name, found in loggers.items() if found[0]},
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "threads": torch.get_num_threads(),
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)],
        "gradients": torch.is_grad_enabled(),
    }


def no_library(name: str | None) -> None:
    raise AssertionError(f"{name}: a library that is exported with does not ask for this")


def test_an_export_and_its_verification_leave_the_process_as_it_was(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_templates.cache_clear()  # tracing is part of it, whatever was exported before
    before = settings()
    monkeypatch.setattr(ctypes, "CDLL", no_library)  # malloc's options are set through it
    export_bundle(tiny_checkpoint, tmp_path / "b", fidelity_tokens=64)
    report = verify_against_checkpoint(tmp_path / "b", tiny_checkpoint, fidelity_tokens=64)
    assert report.differing == ()
    assert settings() == before


def test_a_checkpoint_is_read_on_the_threads_asked_for_and_no_other_work_is(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    set_num_threads = torch.set_num_threads

    def remember(count: int) -> None:
        asked.append(count)
        set_num_threads(count)

    monkeypatch.setattr(torch, "set_num_threads", remember)
    before = torch.get_num_threads()
    CheckpointSubject(tiny_checkpoint, threads=before + 1).read([1, 2, 3])
    assert asked == [before + 1, before]
    assert torch.get_num_threads() == before


class Malloc:
    """Stands in for the C library and remembers what mallopt was told."""

    def __init__(self) -> None:
        self.options: dict[int, int] = {}

    def mallopt(self, option: int, value: int) -> None:
        self.options[option] = value


def test_the_command_has_large_arrays_mapped(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    malloc = Malloc()
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda name: malloc)
        process_settings.for_exporting()
    assert set(malloc.options) == {-1, -3}
    assert all(size < 32 << 20 for size in malloc.options.values())  # glibc's own limit
    calls: list[None] = []
    monkeypatch.setattr(process_settings, "for_exporting", lambda: calls.append(None))
    bundle = str(tmp_path / "b")
    assert main(["export", str(tiny_checkpoint), bundle, "--no-fidelity"]) == 0
    assert len(calls) == 1
    assert main(["verify", bundle, "--checkpoint", str(tiny_checkpoint)]) == 0
    assert len(calls) == 2


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    process_settings.for_exporting()
