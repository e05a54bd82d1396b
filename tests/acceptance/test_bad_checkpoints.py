"""Broken checkpoints and full disks through ``shoal export``: one line, exit 1, nothing left."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.export.writing.folder import _locked
from shoal.graphs.contract import MANIFEST_FILE
from shoal.runtime.commands.cli import main

Refusal = Callable[..., str]
SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
CHARSMAP = '{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/P///w=="}}'
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to break; the weights are a hard copy too."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in (*SMALL, WEIGHTS):
        shutil.copy(tiny_checkpoint / name, folder / name)
    return folder


@pytest.fixture
def bundle(tmp_path: Path, linkable_bundle: Path) -> Iterator[Path]:
    """A finished bundle that a failing export --force must leave as it is, with nothing beside."""
    folder = tmp_path / "bundles" / "b"
    shutil.copytree(linkable_bundle, folder, copy_function=os.link)
    before = contents(folder)
    yield folder
    assert contents(folder) == before
    assert os.listdir(folder.parent) == ["b"]


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and size of every file: they are the very same files."""
    stats = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (found.st_ino, found.st_size) for name, found in stats.items()}


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def split(folder: Path) -> list[str]:
    """Turn the single file into three shards with an index; returns their names."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    shards = [f"model-{i + 1:05}-of-00003.safetensors" for i in range(3)]
    places = {name: shards[i % 3] for i, name in enumerate(sorted(tensors))}
    for shard in shards:
        part = {name: tensors[name] for name, place in places.items() if place == shard}
        save_file(part, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return shards


def test_missing_and_truncated_shards_are_named_together(
    checkpoint: Path, bundle: Path, refusal: Refusal
) -> None:
    first, second, _ = split(checkpoint)
    (checkpoint / first).unlink()
    os.truncate(checkpoint / second, (checkpoint / second).stat().st_size - 1)
    message = refusal("export", checkpoint, bundle, "--force")
    assert f"{first}: missing shard" in message
    assert f"{second}: truncated" in message
    assert "download" in message


def test_an_index_of_very_many_shards_is_one_line(
    checkpoint: Path, bundle: Path, refusal: Refusal
) -> None:
    (checkpoint / WEIGHTS).unlink()
    places = {f"t{number}": f"{number}.safetensors" for number in range(20_000)}
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": places}))
    message = refusal("export", checkpoint, bundle, "--force")
    assert f"{INDEX}: expected at most 10000 files, found 20000" in message


def many_dimensions(path: Path) -> None:
    entry = {"x": {"dtype": "F32", "shape": [2**62] * 100_000, "data_offsets": [0, 8]}}
    header = json.dumps(entry).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def corrupt_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20:24] = b"\xff\x00{["
    path.write_bytes(content)


def huge_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(struct.pack("<Q", 1 << 62))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (corrupt_header, "damaged header"),
        (huge_header, "truncated or not safetensors"),
        (many_dimensions, "damaged header: x has no readable type, shape and offsets"),
        (lambda path: path.write_bytes(b""), "truncated or not safetensors"),
        (lambda path: os.truncate(path, 1 << 20), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "damaged: expected"),
    ],
)
def test_a_damaged_weight_file_is_named(
    checkpoint: Path,
    bundle: Path,
    refusal: Refusal,
    damage: Callable[[Path], None],
    expected: str,
) -> None:
    damage(checkpoint / WEIGHTS)
    message = refusal("export", checkpoint, bundle, "--force")
    assert f"{WEIGHTS}: {expected}" in message
    assert "download" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.layers.3.mlp.experts.7.up_proj.weight", float("nan")),
        ("model.layers.5.shared_head.norm.weight", float("inf")),
        ("model.layers.4.mlp.gate.e_score_correction_bias", float("-inf")),
    ],
)
def test_values_that_are_not_finite_are_found_wherever_they_are(
    checkpoint: Path,
    bundle: Path,
    refusal: Refusal,
    cached_graphs: None,
    name: str,
    value: float,
) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    message = refusal("export", checkpoint, bundle, "--force", "--no-fidelity")
    assert name in message
    assert "found NaN or infinity" in message


def test_missing_unexpected_and_misshapen_tensors_are_reported_together(
    checkpoint: Path, bundle: Path, refusal: Refusal
) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        del tensors["model.layers.2.mlp.experts.3.down_proj.weight"]
        tensors["model.layers.1.surprise"] = torch.zeros(3)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
        name = "model.layers.0.self_attn.o_proj.weight"
        tensors[name] = tensors[name].to(torch.float64)

    edit_tensors(checkpoint, edit)
    message = refusal("export", checkpoint, bundle, "--force")
    for part in (
        "5 problems",
        "missing model.norm.weight [256]",
        "missing model.layers.2.mlp.experts.3.down_proj.weight [256, 128]",
        "unexpected model.layers.1.surprise [3]",
        "lm_head.weight: expected shape [4096, 256], found [4095, 256]",
        "model.layers.0.self_attn.o_proj.weight: expected F32, F16, BF16, F8_E4M3, found F64",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "llama"}, "model_type: expected"),
        ({"architectures": ["DeepseekV3ForSequenceClassification"]}, "architectures: expected"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', found 'gelu'"),
        ({"logit_softcapping": 30.0}, "logit_softcapping: unknown key"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.quant_method"),
        ({"rope_scaling": {"type": "longrope", "factor": 4}}, "rope_scaling.rope_type: expected"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok: expected 1 to"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected at most"),
        ({"hidden_size": 10**400}, "hidden_size: expected at most 2147483647, found 1000"),
        ({"kv_lora_rank": 2**31 - 1}, "kv_lora_rank: expected at most 262144, found 2147483647"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps: expected a finite number"),
        ({"hidden_size": "256"}, "hidden_size: expected a whole number"),
        ({"eos_token_id": 4096}, "eos_token_id: expected token ids below vocab_size 4096"),
    ],
)
def test_an_unsupported_config_is_refused_by_key(
    checkpoint: Path, bundle: Path, refusal: Refusal, changes: dict[str, Any], expected: str
) -> None:
    (checkpoint / "generation_config.json").unlink()
    edit_config(checkpoint, **changes)
    assert expected in refusal("export", checkpoint, bundle, "--force")


def test_pickles_are_refused_and_never_opened(
    checkpoint: Path, bundle: Path, refusal: Refusal
) -> None:
    (checkpoint / WEIGHTS).unlink()
    mark = checkpoint / "executed"
    # What unpickling this would do: os.system("touch executed")
    (checkpoint / "pytorch_model.bin").write_bytes(
        b"cposix\nsystem\n(S'touch " + os.fsencode(mark) + b"'\ntR."
    )
    message = refusal("export", checkpoint, bundle, "--force")
    assert "pytorch_model.bin" in message
    assert "safetensors only" in message
    assert not mark.exists()


def test_a_folder_that_is_no_checkpoint_is_told_what_is_missing(
    checkpoint: Path, bundle: Path, refusal: Refusal, tmp_path: Path
) -> None:
    force = (bundle, "--force")
    message = refusal("export", tmp_path / "nowhere", *force)
    assert "expected a checkpoint, which is a Hugging Face folder" in message
    assert message.endswith("found no such folder; check the path")
    message = refusal("export", checkpoint / WEIGHTS, *force)
    assert message.endswith("found another file; check the path")
    (checkpoint / WEIGHTS).unlink()
    assert "download the weights" in refusal("export", checkpoint, *force)
    (checkpoint / "config.json").write_text('{"model_type": ')
    assert "config.json: expected JSON" in refusal("export", checkpoint, *force)
    (checkpoint / "config.json").unlink()
    message = refusal("export", checkpoint, *force)
    assert message.endswith("found a folder without config.json; check the path")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("tokenizer.json", "{}", "tokenizer.json: model: expected an object"),
        ("tokenizer.json", CHARSMAP, "tokenizer.json: normalizer: precompiled_charsmap: expected"),
        ("generation_config.json", "{", "generation_config.json: expected JSON"),
        ("generation_config.json", '{"eos_token_id": [1, -1]}', "eos_token_id: expected token ids"),
    ],
)
def test_damaged_small_files_are_named(
    checkpoint: Path, bundle: Path, refusal: Refusal, name: str, content: str, expected: str
) -> None:
    (checkpoint / name).write_text(content)
    assert expected in refusal("export", checkpoint, bundle, "--force")


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(
    checkpoint: Path, bundle: Path, refusal: Refusal
) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if tensors[name].shape[0] == 4096:
                tensors[name] = tensors[name][:1000].clone()

    edit_tensors(checkpoint, edit)
    edit_config(checkpoint, vocab_size=1000)
    message = refusal("export", checkpoint, bundle, "--force")
    assert "tokenizer.json: expected token ids below vocab_size 1000" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8 text"),
        (b"", "too few"),
        (b"a", "too few"),
    ],
)
def test_an_unreadable_fidelity_text_is_named_before_anything_is_built(
    checkpoint: Path,
    bundle: Path,
    refusal: Refusal,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    expected: str,
) -> None:
    monkeypatch.setattr("shoal.export.plan.build_graphs", None)
    text = checkpoint / "text.txt"
    if content is not None:
        text.write_bytes(content)
    message = refusal("export", checkpoint, bundle, "--force", "--fidelity-text", text)
    assert "text.txt" in message
    assert expected in message
    assert "--fidelity-text" in message


def test_a_target_that_cannot_be_one_is_left_alone(
    checkpoint: Path, bundle: Path, refusal: Refusal, tmp_path: Path
) -> None:
    assert "--force replaces it" in refusal("export", checkpoint, bundle)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "photo").write_text("keep")
    message = refusal("export", checkpoint, photos, "--force")
    assert "a folder with other files" in message
    assert "other files" in refusal("export", checkpoint, checkpoint, "--force")
    assert "not a folder" in refusal("export", checkpoint, photos / "photo", "--force")
    assert "cannot be written" in refusal("export", checkpoint, photos / "photo" / "b")
    assert (photos / "photo").read_text() == "keep"
    assert os.listdir(photos) == ["photo"]


def test_two_exports_into_one_folder_are_refused(
    checkpoint: Path, bundle: Path, refusal: Refusal
) -> None:
    with _locked(bundle):  # as another process would hold it
        message = refusal("export", checkpoint, bundle, "--force")
    assert "another export is writing it" in message


def test_too_little_space_is_found_before_anything_is_written(
    checkpoint: Path,
    bundle: Path,
    refusal: Refusal,
    cached_graphs: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    little = shutil.disk_usage("/")._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: little)
    message = refusal("export", checkpoint, bundle, "--force", "--no-fidelity")
    assert "needs 0.01 GB, 0.01 GB are free; free some space" in message


LIMITED = """
import resource, signal, sys
from shoal.runtime.commands.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(["export", "--force", "--no-fidelity", *sys.argv[2:]]))
"""


def test_space_that_runs_out_on_the_way_leaves_nothing(checkpoint: Path, bundle: Path) -> None:
    """The system itself refuses to let a file grow beyond 5 MB, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "5000000", str(checkpoint), str(bundle)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    *progress, line = done.stderr.splitlines()
    assert all(text.startswith("export: ") for text in progress)
    assert line.startswith("error: ")
    assert str(bundle) in line
    assert "File too large" in line
    assert "files of this size are not allowed there" in line
    assert ".exporting" not in line


@pytest.mark.parametrize("name", ["decoder.onnx", MANIFEST_FILE])
def test_a_full_disk_at_a_small_file_leaves_nothing(
    checkpoint: Path,
    bundle: Path,
    refusal: Refusal,
    cached_graphs: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    def full(path: Path, *args: Any, **kwargs: Any) -> int:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written: int = write[type(args[0])](path, *args, **kwargs)
        return written

    write: dict[type, Any] = {bytes: Path.write_bytes, str: Path.write_text}
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_text", full)
    message = refusal("export", checkpoint, bundle, "--force", "--no-fidelity")
    assert f"{bundle}: cannot be written: No space left on device" in message


def test_a_new_target_is_not_begun_either(
    checkpoint: Path, refusal: Refusal, tmp_path: Path
) -> None:
    os.truncate(checkpoint / WEIGHTS, 1000)
    refusal("export", checkpoint, tmp_path / "new" / "bundle")
    assert not (tmp_path / "new").exists()
    assert main(["verify", str(tmp_path / "new" / "bundle")]) == 1
