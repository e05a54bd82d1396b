"""Bundles of the trained tiny model, exported once per test session."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY_CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "tiny-v3"


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    return TINY_CHECKPOINT


@pytest.fixture(scope="session")
def fp32_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-v3 with its float weights."""
    return _export(tmp_path_factory.mktemp("bundles") / "tiny-fp32", "fp32")


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-v3 in int8, without a fidelity report."""
    return _export(tmp_path_factory.mktemp("bundles") / "tiny-int8", "int8")


def _export(bundle: Path, weights: str) -> Path:
    # Imported here: tests that need no bundle need no torch.
    from shoal.export.pipeline import export_bundle

    export_bundle(TINY_CHECKPOINT, bundle, weights=weights, fidelity=False)
    return bundle
