"""Bundles of the trained tiny model, exported once per test session.

Where nothing can be exported, SHOAL_TEST_BUNDLES names a folder that holds them (tests/arm).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from shoal.graphs.contract import MANIFEST_FILE
from shoal.graphs.manifest_reader import read_manifest

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


@pytest.fixture(scope="session")
def int8_block_128_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-v3 in int8 with blocks of 128, for which onnxruntime has a kernel for single rows."""
    return _export(tmp_path_factory.mktemp("bundles") / "tiny-int8-128", "int8", block_size=128)


@pytest.fixture(scope="session")
def endless_bundle(fp32_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-v3 with its float weights, as if it had neither a BOS nor an EOS token."""
    bundle = tmp_path_factory.mktemp("bundles") / "tiny-endless"
    shutil.copytree(fp32_bundle, bundle)
    (bundle / "generation_config.json").unlink()
    path = bundle / MANIFEST_FILE
    manifest = read_manifest(path.read_bytes(), str(path))
    del manifest.files["generation_config.json"]
    model = dataclasses.replace(manifest.model, bos_token_id=None, eos_token_ids=())
    path.write_text(dataclasses.replace(manifest, model=model).to_json(), encoding="utf-8")
    return bundle


def _export(bundle: Path, weights: str, **options: Any) -> Path:
    if "SHOAL_TEST_BUNDLES" in os.environ:
        return Path(os.environ["SHOAL_TEST_BUNDLES"]) / bundle.name
    # Imported here: tests that need no bundle need no torch.
    from shoal.export.pipeline import export_bundle

    export_bundle(TINY_CHECKPOINT, bundle, weights=weights, fidelity=False, **options)
    return bundle
