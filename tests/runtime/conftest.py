from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.small_model import SMALL_MODEL

from shoal.graphs.manifest import FileInfo, Manifest, TensorInfo, checksum


def file_info(content: bytes) -> FileInfo:
    return FileInfo(size=len(content), sha256=hashlib.sha256(content).hexdigest())


class FakeBundle:
    """A folder with everything that opening looks at, but no graph that could run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.contents = {
            "decoder.onnx": b"decoder graph",
            "head.onnx": b"head graph",
            "weights.bin": bytes(range(256)) * 32,
            "tokenizer_config.json": b"{}",
        }
        for name, content in self.contents.items():
            (folder / name).write_bytes(content)
        self.manifest = Manifest(
            shoal_version="0.1.0",
            weights="int8",
            model=SMALL_MODEL,
            graphs={"decoder": "decoder.onnx", "head": "head.onnx"},
            files={name: file_info(content) for name, content in self.contents.items()},
            tensors={
                "embed_tokens.weight": TensorInfo(
                    dtype="uint8", shape=(16, 256), offset=0, size=4096
                ),
                "norm.weight": TensorInfo(dtype="float32", shape=(8,), offset=4096, size=32),
            },
            token_read_bytes=100,
            config={"model_type": "deepseek_v3", "rope_scaling": None},
            fidelity={"mean_kl": 0.001},
            notes=("a note",),
        )
        self.write(self.content())

    def content(self) -> dict[str, Any]:
        """The manifest as JSON values, to be changed and written again."""
        content: dict[str, Any] = json.loads(self.manifest.to_json())
        return content

    def write(self, content: dict[str, Any], *, seal: bool = True) -> None:
        """Write a manifest, with a correct checksum if it is to be sealed."""
        if seal:
            content["manifest_sha256"] = checksum(content)
        (self.folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def fake_bundle(tmp_path: Path) -> FakeBundle:
    return FakeBundle(tmp_path / "bundle")
