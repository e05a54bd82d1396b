"""Which files hold the weights, and indices that would be read elsewhere or for hours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shoal.export.checkpoint.safetensors_files import SafetensorsFiles
from shoal.export.checkpoint.weight_files import (
    INDEX_FILE,
    SINGLE_FILE,
    read_index,
    weights_file,
)
from shoal.graphs.errors import CheckpointError

pytestmark = pytest.mark.dependencies


def write_index(folder: Path, weight_map: Any, mark: bytes = b"") -> None:
    content = json.dumps({"weight_map": weight_map}).encode()
    (folder / INDEX_FILE).write_bytes(mark + content)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFiles.open(folder)
    message = str(caught.value)
    assert message.isprintable()
    assert str(folder) in message
    return message


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({SINGLE_FILE, INDEX_FILE, "a.safetensors"}, SINGLE_FILE),
        ({SINGLE_FILE}, SINGLE_FILE),
        ({INDEX_FILE, "a.safetensors"}, INDEX_FILE),
        ({"a.safetensors"}, None),
    ],
)
def test_the_single_file_goes_first(there: set[str], expected: str | None) -> None:
    assert weights_file(there) == expected


def test_a_leftover_index_is_not_looked_at(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / SINGLE_FILE)
    save_file({"a": torch.zeros(1)}, tmp_path / "old.safetensors")
    write_index(tmp_path, {"a": "old.safetensors", "b": "gone.safetensors"})
    opened = SafetensorsFiles.open(tmp_path)
    assert list(opened.headers) == ["a"]
    assert opened.read("a") == 1


def test_a_byte_order_mark_is_no_part_of_an_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    write_index(tmp_path, {"a": "one.safetensors"}, mark=b"\xef\xbb\xbf")
    assert SafetensorsFiles.open(tmp_path).read("a") == 1


def test_tensors_are_listed_by_shard(tmp_path: Path) -> None:
    write_index(tmp_path, {"b": "2.safetensors", "c": "1.safetensors", "a": "2.safetensors"})
    found = read_index(tmp_path / INDEX_FILE)
    assert list(found.items()) == [("1.safetensors", ["c"]), ("2.safetensors", ["a", "b"])]


def test_an_index_of_very_many_shards_is_refused_at_once(tmp_path: Path) -> None:
    write_index(tmp_path, {f"t{i}": f"{i}.safetensors" for i in range(20_000)})
    assert "expected at most 10000 files, found 20000" in refusal(tmp_path)


def test_many_shards_that_are_not_there_make_no_long_line(tmp_path: Path) -> None:
    names = {f"t{i}": f"{i % 9999:05}.safetensors" for i in range(100_000)}
    write_index(tmp_path, names)
    message = refusal(tmp_path)
    assert "9999 problems: 00000.safetensors: missing shard" in message
    assert message.endswith("and 9899 more; download these files again")
    assert len(message) < 20_000


def test_a_shard_that_lacks_many_tensors_names_some(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    names = ["a", *(f"t{number:05}" for number in range(9000))]
    write_index(tmp_path, dict.fromkeys(names, "one.safetensors"))
    assert "lacks t00000, t00001, t00002 and 8997 more, which" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("../a.safetensors", "/a.safetensors", "sub/a.safetensors", "a\\b.safetensors"),
        *("..", "", ".safetensors", "a.bin", "*.safetensors", "[ab].safetensors"),
        *(
            "a\n.safetensors",
            "x" * 1_000_000,
            "\u00e4" * 122 + ".safetensors",
            "\ud800.safetensors",
        ),
    ],
    ids=lambda name: repr(name[:20]),
)
def test_names_that_are_not_of_a_file_in_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    write_index(tmp_path, {"a": name})
    message = refusal(tmp_path)
    assert "expected plain names of .safetensors files, found " in message
    assert len(message) < 500


def test_an_index_that_is_a_pipe_or_has_gigabytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / INDEX_FILE).open("wb") as file:
        file.truncate(4 << 30)
    assert "expected at most 67108864 bytes" in refusal(tmp_path)
