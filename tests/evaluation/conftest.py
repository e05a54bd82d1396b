"""A text short enough to be read many times, and bundles that differ in what the manifest says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.graphs.fidelity import shipped_text
from shoal.graphs.manifest import FileInfo
from shoal.graphs.manifest_reader import read_manifest
from shoal.runtime import Model, open_bundle


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 400 tokens: six full windows of 64 and a rest."""
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(shipped_text()[:1500], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def float_model(fp32_bundle: Path) -> Model:
    return open_bundle(fp32_bundle, threads=1)


@pytest.fixture(scope="session")
def int8_model(int8_bundle: Path) -> Model:
    return open_bundle(int8_bundle, threads=1)


@pytest.fixture
def relabelled(int8_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the int8 bundle with another config.json, another tokenizer or none."""

    def make(
        *,
        config: dict[str, object] | None = None,
        merges_dropped: int = 0,
        has_tokenizer: bool = True,
    ) -> Path:
        folder = tmp_path / "relabelled"
        folder.mkdir()
        for path in int8_bundle.iterdir():
            if path.name != "manifest.json":
                os.link(path, folder / path.name)
        where = int8_bundle / "manifest.json"
        manifest = read_manifest(where.read_text(encoding="utf-8"), str(where))
        files = dict(manifest.files)
        if merges_dropped:
            file = folder / "tokenizer.json"
            content = json.loads(file.read_text(encoding="utf-8"))
            del content["model"]["merges"][-merges_dropped:]
            file.unlink()
            file.write_text(json.dumps(content), encoding="utf-8")
            data = file.read_bytes()
            files[file.name] = FileInfo(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        if not has_tokenizer:
            (folder / "tokenizer.json").unlink()
            del files["tokenizer.json"]
        changed = dataclasses.replace(
            manifest, config=manifest.config | (config or {}), files=files
        )
        (folder / "manifest.json").write_text(changed.to_json(), encoding="utf-8")
        return folder

    return make
