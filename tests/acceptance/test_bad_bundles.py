"""Damaged and hostile bundles at the command line: one line, exit 1, nothing believed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from shoal.graphs.manifest import checksum
from shoal.runtime.commands.cli import main

Refusal = Callable[..., str]
FILES = (
    "batch.float16.onnx",
    "batch.int8.onnx",
    "batch.onnx",
    "decoder.float16.onnx",
    "decoder.int8.onnx",
    "decoder.onnx",
    "generation_config.json",
    "head.onnx",
    "manifest.json",
    "mtp.float16.onnx",
    "mtp.int8.onnx",
    "mtp.onnx",
    "tokenizer.json",
    "tokenizer_config.json",
    "weights.bin",
)
PROMPT = ("--prompt", "Once upon a time", "--max-new-tokens", "2")


@pytest.fixture
def bundle(int8_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int8_bundle, tmp_path / "bundle"))


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x40]))


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and seal it again, as whoever made the bundle can."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    content["manifest_sha256"] = checksum(content)
    path.write_text(json.dumps(content))


DRAFT_ROLES = ("mtp", "mtp.float16", "mtp.int8")


def leave_out_drafts(manifest: dict[str, Any]) -> None:
    for role in DRAFT_ROLES:
        del manifest["files"][manifest["graphs"].pop(role)]
    manifest["model"]["num_mtp_layers"] = 0


def replace(bundle: Path, name: str, content: bytes) -> None:
    (bundle / name).write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(bundle, lambda manifest: manifest["files"].update({name: entry}))


def test_the_list_of_files_is_complete(int8_bundle: Path) -> None:
    assert sorted(os.listdir(int8_bundle)) == list(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_verify_finds_a_changed_byte_in_any_file(
    bundle: Path, refusal: Refusal, name: str, where: float
) -> None:
    path = bundle / name
    flip(path, round(where * (path.stat().st_size - 1)))
    assert name in refusal("verify", bundle)


@pytest.mark.parametrize("name", [name for name in FILES if name != "weights.bin"])
def test_what_is_changed_besides_the_weights_is_found_on_opening(
    bundle: Path, refusal: Refusal, name: str
) -> None:
    flip(bundle / name, (bundle / name).stat().st_size // 2)
    for command in (("run", bundle, *PROMPT), ("inspect", bundle), ("bench", bundle)):
        assert name in refusal(*command)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_short_file_is_named(bundle: Path, refusal: Refusal, name: str) -> None:
    os.truncate(bundle / name, (bundle / name).stat().st_size - 2)
    assert name in refusal("run", bundle, *PROMPT)
    (bundle / name).unlink()
    assert name in refusal("run", bundle, *PROMPT)
    assert name in refusal("verify", bundle)


def set_key(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (set_key("format_version", value=2), "format_version 2 is newer than 1; upgrade shoal"),
        (set_key("op_set_version", value=99), "op_set_version 99 is newer than 1"),
        (
            set_key("files", "../outside", value={"size": 0, "sha256": "0" * 64}),
            "must be named plainly",
        ),
        (
            set_key("files", "/etc/hostname", value={"size": 0, "sha256": "0" * 64}),
            "must be named plainly",
        ),
        (set_key("graphs", "decoder", value="../decoder.onnx"), "listed under files"),
        (set_key("files", "weights.bin", "size", value=1 << 62), "weights.bin: expected"),
        (set_key("model", "num_hidden_layers", value=10**18), "num_hidden_layers"),
        (set_key("model", "max_position_embeddings", value=10**30), "max_position_embeddings"),
        (set_key("model", "vocab_size", value=-1), "vocab_size"),
        (set_key("model", "hidden_size", value=1e308), "hidden_size"),
        (set_key("model", "vocab_size", value=(1 << 31) - 1), "rows, expected vocab_size"),
        (set_key("tensors", "norm.weight", "offset", value=1 << 60), "norm.weight"),
    ],
)
def test_a_hostile_manifest_is_refused_by_field(
    bundle: Path, refusal: Refusal, edit: Callable[[dict[str, Any]], None], expected: str
) -> None:
    edit_manifest(bundle, edit)
    assert expected in refusal("run", bundle, *PROMPT)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 4096, b"{", b"[]", b"{}", b'{"format_version": 1e999}', b"[" * 100_000, b"\xff"],
)
def test_a_manifest_that_is_none_is_refused(bundle: Path, refusal: Refusal, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    for command in (("run", bundle, *PROMPT), ("verify", bundle), ("inspect", bundle)):
        assert "manifest.json" in refusal(*command)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin"])
@pytest.mark.parametrize("name", ["decoder.onnx", "head.onnx"])
def test_a_graph_cannot_read_files_outside_the_bundle(
    bundle: Path, refusal: Refusal, name: str, location: str
) -> None:
    shutil.copy(bundle / "weights.bin", bundle.parent / "secret.bin")
    (bundle / "link.bin").symlink_to(bundle.parent / "secret.bin")
    graph = onnx.load(bundle / name, load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    replace(bundle, name, graph.SerializeToString())
    assert name in refusal("run", bundle, *PROMPT)


def test_weights_changed_since_the_export_are_named_against_the_checkpoint(
    bundle: Path, tiny_checkpoint: Path, refusal: Refusal, cached_graphs: None
) -> None:
    """Whoever seals the bundle again deceives the byte check, not the check against the source."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    content = bytearray((bundle / "weights.bin").read_bytes())
    content[manifest["tensors"]["layers.2.mlp.experts.down"]["offset"]] ^= 1
    replace(bundle, "weights.bin", bytes(content))
    edit_manifest(bundle, leave_out_drafts)
    for role in DRAFT_ROLES:
        (bundle / f"{role}.onnx").unlink()
    assert main(["verify", str(bundle)]) == 0
    message = refusal("verify", bundle, "--checkpoint", tiny_checkpoint, silent=False)
    assert "4 parts differ" in message
    assert "mtp.onnx, mtp.float16.onnx, mtp.int8.onnx, layers.2.mlp.experts.down" in message


def test_another_checkpoint_than_the_bundles_is_refused(
    bundle: Path, tiny_checkpoint: Path, refusal: Refusal, tmp_path: Path, cached_graphs: None
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 20000.0}))
    message = refusal("verify", bundle, "--checkpoint", other, silent=False)
    assert "was made from a checkpoint with another config.json" in message


def test_prompts_that_cannot_be_answered_are_refused(bundle: Path, refusal: Refusal) -> None:
    assert "expected a prompt, found nothing" in refusal("run", bundle, "--prompt", "")
    message = refusal("run", bundle, "--prompt", "word " * 3000)
    assert "more than the model's 2048" in message
    assert "shorten the prompt" in message
