"""SafetensorsFiles folders: what is read back, and every way in which files can be wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from shoal.export.checkpoint import safetensors_files as checkpoint_module
from shoal.export.checkpoint.safetensors_files import SafetensorsFiles
from shoal.export.checkpoint.weight_files import INDEX_FILE, SINGLE_FILE
from shoal.graphs.errors import CheckpointError

pytestmark = pytest.mark.dependencies


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(7, 5, generator=generator)
    return {
        "f32": values,
        "f16": values.half(),
        "bf16": values.bfloat16(),
        "vector": values[0].clone(),
        "deep": torch.randn(4, 3, 2, generator=generator),
        "scalar": torch.tensor(2.5),
    }


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / SINGLE_FILE)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(3, 2), "b": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"c": torch.zeros(4)}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    return tmp_path


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


def write_raw(folder: Path, header: bytes, data: bytes = b"") -> None:
    (folder / SINGLE_FILE).write_bytes(struct.pack("<Q", len(header)) + header + data)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFiles.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize("name", list(tensors()))
def test_tensors_are_read_exactly_as_float32(single: Path, name: str) -> None:
    read = SafetensorsFiles.open(single).read(name)
    assert read.dtype == torch.float32
    assert torch.equal(read, tensors()[name].float())


@pytest.mark.parametrize("name", ["f32", "bf16"])
def test_tensors_longer_than_a_chunk_are_read_exactly(
    single: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "CHUNK_ITEMS", 4)
    assert torch.equal(SafetensorsFiles.open(single).read(name), tensors()[name].float())


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 3), (3, 4), (2, 2)])
def test_rows_are_slices_of_the_first_axis(single: Path, start: int, stop: int) -> None:
    rows = SafetensorsFiles.open(single).read_rows("deep", start, stop)
    assert torch.equal(rows, tensors()["deep"][start:stop])


def test_what_was_read_stays_when_the_file_goes(single: Path) -> None:
    read = SafetensorsFiles.open(single).read("f32")
    (single / SINGLE_FILE).write_bytes(b"")
    assert torch.equal(read, tensors()["f32"])


def test_shards_are_read_through_the_index(sharded: Path) -> None:
    opened = SafetensorsFiles.open(sharded)
    assert set(opened.headers) == {"a", "b", "c"}
    assert torch.equal(opened.read("c"), torch.zeros(4))


def test_shards_may_be_symbolic_links_to_elsewhere(sharded: Path, tmp_path: Path) -> None:
    store = tmp_path / "blobs"
    store.mkdir()
    (sharded / "two.safetensors").rename(store / "0123")
    (sharded / "two.safetensors").symlink_to(store / "0123")
    assert torch.equal(SafetensorsFiles.open(sharded).read("c"), torch.zeros(4))


def test_all_bad_shards_are_named_together(sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    content = (sharded / "one.safetensors").read_bytes()
    (sharded / "one.safetensors").write_bytes(content[:-3])
    message = refusal(sharded)
    assert "2 problems" in message
    assert "two.safetensors: missing shard" in message
    assert f"one.safetensors: truncated: expected {len(content)} bytes" in message


def test_a_shard_that_lacks_a_tensor_of_the_index_is_refused(sharded: Path) -> None:
    write_index(sharded, {"a": "one.safetensors", "c": "one.safetensors"})
    assert "one.safetensors: lacks c, which" in refusal(sharded)


@pytest.mark.parametrize(
    "name",
    ["../two.safetensors", "/etc/x.safetensors", "sub/two.safetensors", "..", "a\\b.safetensors"],
)
def test_an_index_that_leaves_the_folder_is_refused(sharded: Path, name: str) -> None:
    write_index(sharded, {"a": "one.safetensors", "c": name})
    assert f"expected plain names of .safetensors files, found {name!r}" in refusal(sharded)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"weight_map": 3}', b'{"weight_map": {"a": 1}}', b"\xff\xfe"]
)
def test_a_damaged_index_is_refused(sharded: Path, content: bytes) -> None:
    (sharded / INDEX_FILE).write_bytes(content)
    assert "download it again" in refusal(sharded)


ENTRY = '{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ("{", b""),
        ("[]", b""),
        ("\xff", b""),
        ('{"x":3}', b""),
        (ENTRY.replace("F32", "F31"), bytes(8)),
        (ENTRY.replace("[2]", "[3]"), bytes(8)),
        (ENTRY.replace("[2]", "[-2]"), bytes(8)),
        (ENTRY.replace("[2]", "2"), bytes(8)),
        (ENTRY.replace("[0,8]", "[8,0]"), bytes(8)),
        (ENTRY.replace("[0,8]", "[4,12]"), bytes(12)),
        (ENTRY.replace("[0,8]", "[0]"), bytes(8)),
        (ENTRY[:-1] + "," + ENTRY[1:].replace("x", "y"), bytes(8)),
        ('{"x":0,' + ENTRY[1:], bytes(8)),
        ('{"__metadata__":{"format":NaN},' + ENTRY[1:], bytes(8)),
        ('{"__metadata__":{"format":1},' + ENTRY[1:], bytes(8)),
        ('{"__metadata__":["format"],' + ENTRY[1:], bytes(8)),
        (ENTRY.encode("utf-16").decode("latin-1"), bytes(8)),
    ],
    ids=str,
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: str, data: bytes) -> None:
    write_raw(tmp_path, header.encode("latin-1"), data)
    assert "model.safetensors: damaged header" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ("[4,12]", "y overlaps x"),
        ("[0,8]", "y overlaps x"),
        ("[12,20]", "4 bytes between x and y are unused"),
        ("[8,20]", "y: F32 of shape [2] does not fit offsets [8, 20]"),
        ("[8,12]", "y: F32 of shape [2] does not fit offsets [8, 12]"),
        ('"[8,16]"', "y has no readable type, shape and offsets"),
    ],
)
def test_the_tensor_whose_offsets_are_wrong_is_named(
    tmp_path: Path, offsets: str, expected: str
) -> None:
    second = ENTRY[1:].replace("x", "y").replace("[0,8]", offsets)
    write_raw(tmp_path, f"{ENTRY[:-1]},{second}".encode(), bytes(20))
    assert f"model.safetensors: damaged header: {expected}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([1] * 9, [0, 4]),
        ([2**62] * 100_000, [0, 4]),
        ([2**63], [0, 4]),
        ([0, 2**63], [0, 0]),
        ([10**4000], [0, 10**4000]),
        ([1], [0, 2**63]),
    ],
    ids=["dimensions", "many_dimensions", "size", "beside_zero", "digits", "offset"],
)
def test_shapes_and_offsets_that_no_file_has_are_not_computed_with(
    tmp_path: Path, shape: list[int], offsets: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiply(sizes: Sequence[int]) -> int:
        raise AssertionError("multiplied before it was checked")

    entry = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    write_raw(tmp_path, json.dumps({"x" * 100_000: entry}).encode(), bytes(8))
    monkeypatch.setattr("shoal.export.checkpoint.safetensors_files.math.prod", multiply)
    message = refusal(tmp_path)
    assert "xxx... has no readable type, shape and offsets" in message
    assert len(message) < 500


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 1 << 60) + b"{}"], ids=len)
def test_a_file_too_short_for_its_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE_FILE).write_bytes(content)
    assert "truncated or not safetensors" in refusal(tmp_path)


@pytest.mark.parametrize(("size", "word"), [(7, "truncated"), (9, "damaged")])
def test_a_file_of_another_length_than_its_header_says_is_refused(
    tmp_path: Path, size: int, word: str
) -> None:
    write_raw(tmp_path, ENTRY.encode(), bytes(size))
    assert f"model.safetensors: {word}: expected" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_with_the_way_to_convert(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    message = refusal(tmp_path)
    assert name in message
    assert "safetensors only; convert with transformers" in message


def test_a_folder_without_weights_or_no_folder_is_refused(tmp_path: Path) -> None:
    assert "found neither" in refusal(tmp_path)
    assert "expected a checkpoint folder" in refusal(tmp_path / "absent")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    bad = torch.ones(6, dtype=torch.bfloat16)
    bad[4] = value
    save_file({"good": torch.ones(2), "bad": bad}, tmp_path / SINGLE_FILE)
    opened = SafetensorsFiles.open(tmp_path)
    opened.read("good")
    with pytest.raises(CheckpointError, match="bad: expected finite values"):
        opened.read("bad")


def test_a_file_that_shrinks_after_opening_is_refused(single: Path) -> None:
    opened = SafetensorsFiles.open(single)
    content = (single / SINGLE_FILE).read_bytes()
    (single / SINGLE_FILE).write_bytes(content[: len(content) // 2])
    last = max(opened.headers, key=lambda name: opened.headers[name].offset)
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        opened.read(last)


def test_a_file_that_vanishes_after_opening_is_refused(single: Path) -> None:
    opened = SafetensorsFiles.open(single)
    (single / SINGLE_FILE).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        opened.read("f32")
