"""GGUF headers that would take hours or gigabytes, and values of kinds that a key never has."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.export.checkpoint.gguf_writer import TOKEN_TYPES, metadata_of, vocabulary_as_read

from shoal.export.checkpoint.gguf.config import config_of
from shoal.export.checkpoint.gguf.file import GgufModel, GgufTensor, read_gguf
from shoal.export.checkpoint.gguf.tensors import GgufTensors
from shoal.export.checkpoint.gguf.vocabulary import tokenizer_of
from shoal.export.config.model_config import ModelConfig
from shoal.graphs.errors import CheckpointError, ShoalError

pytestmark = pytest.mark.dependencies

TINY = Path(__file__).parents[3] / "checkpoints" / "tiny-v3" / "config.json"
VOCABULARY = {"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}, "added_tokens": []}
CONFIG = ModelConfig.from_hf({"model_type": "deepseek_v3"})  # 256 experts
NUMBERS = np.array([1, 2], np.int32)


@contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """Gives the most bytes that Python and NumPy held at a time in the block."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def stacks(names: Iterable[str], count: int) -> GgufModel:
    """A file with stacks of experts of one value each, which are small in a file."""
    stack = GgufTensor(file=Path("m.gguf"), type="F32", shape=(count, 1, 1), offset=0)
    return GgufModel(path=Path("m.gguf"), metadata={}, tensors=dict.fromkeys(names, stack))


def test_experts_are_counted_before_they_are_listed() -> None:
    model = stacks(["blk.0.ffn_up_exps.weight"], 4_000_000)
    with (
        traced_memory() as peak,
        pytest.raises(CheckpointError, match=r"expected 256 experts .* found 4000000"),
    ):
        GgufTensors(model, CONFIG)
    assert peak() < 1 << 20


@pytest.mark.parametrize("number", ["{:05}", "{}0000", "{}" + "0" * 5000], ids=len)
def test_experts_of_layers_that_the_config_has_not_are_not_listed(number: str) -> None:
    names = [f"blk.{number.format(i + 1)}.ffn_up_exps.weight" for i in range(1000)]
    assert set(GgufTensors(stacks(names, 256), CONFIG).headers) == set(names)


def bytes_in_metadata(path: Path, count: int) -> Path:
    """A sparse file with one key, whose value is an array of bytes."""
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 0, count)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
    os.truncate(path, path.stat().st_size + count)
    return path


def test_numbers_of_metadata_take_little_more_memory_than_the_file(tmp_path: Path) -> None:
    count = 16 << 20  # as Python's integers they took 18 times as much
    path = bytes_in_metadata(tmp_path / "t.gguf", count)
    with traced_memory() as peak:
        found = read_gguf(path).metadata["k"]
    assert (found.dtype, found.shape) == (np.uint8, (count,))
    assert peak() < 2.5 * count


def test_a_header_of_hundreds_of_megabytes_is_refused_unread(tmp_path: Path) -> None:
    path = bytes_in_metadata(tmp_path / "t.gguf", 256 << 20)
    with traced_memory() as peak, pytest.raises(CheckpointError, match="268435456 bytes at byte"):
        read_gguf(path)
    assert peak() < 1 << 20


@pytest.mark.parametrize("name", ["m-00001-of-00000", "m-00003-of-00002", "m-00000-of-00002"])
def test_a_part_that_no_model_has_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="expected a part between 1 and the number of parts"):
        read_gguf(path)


def test_a_number_of_tensors_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"
    key = b"split.tensors.count"
    value = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 4, 2) + bytes(8)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + value + bytes(64))
    with pytest.raises(CheckpointError, match=r"expected array.* tensors in 1 files, found 0"):
        read_gguf(path)


def understand(model: GgufModel) -> None:
    """Everything that is made of metadata."""
    ModelConfig.from_hf(config_of(model), where="m.gguf")
    tokenizer_of(model.path, model.metadata)


def refusal(changes: dict[str, Any]) -> str:
    """What is said of a header with other values, in its config or its vocabulary."""
    metadata = metadata_of(json.loads(TINY.read_text()))
    metadata |= vocabulary_as_read(VOCABULARY, "deepseek-v3") | {
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    stub = GgufTensor(file=Path("m"), type="F32", shape=(4096, 1), offset=0)
    model = GgufModel(
        path=Path("m.gguf"),
        metadata=metadata | changes,
        tensors=dict.fromkeys(["token_embd.weight", "output.weight"], stub),
    )
    with pytest.raises(ShoalError) as caught:
        understand(model)
    message = str(caught.value)
    assert message.startswith("m.gguf: ")
    assert message.isprintable()
    assert len(message) < 1000
    return message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokenizer.ggml.merges": NUMBERS}, "merges that are no texts"),
        ({"tokenizer.ggml.merges": ["x" * 100_000]}, "a merge of what are no tokens: xxx"),
        ({"tokenizer.ggml.merges": ["ab "]}, "a merge of what are no tokens: ab "),
        ({"tokenizer.ggml.tokens": NUMBERS}, "tokens that are no texts"),
        ({"tokenizer.ggml.tokens": "ab"}, "tokens that are no texts"),
        ({TOKEN_TYPES: ["a", "b", "c"]}, "types of tokens that are no numbers"),
        ({"tokenizer.ggml.model": NUMBERS}, "ggml.model that is no text"),
        ({"tokenizer.chat_template": NUMBERS}, "chat_template that is no text"),
        ({"tokenizer.ggml.eos_token_id": NUMBERS}, "eos_token_id: expected a token id, found a li"),
        ({"tokenizer.ggml.eot_token_id": NUMBERS}, "eot_token_id: expected a token id, found a li"),
        ({"tokenizer.ggml.bos_token_id": "x" * 9999}, "expected a token id, found 'xxx"),
        ({"tokenizer.ggml.eos_token_id": 3}, "a token eos that is none of the 3 tokens"),
        ({"general.architecture": ["deepseek2"] * 9999}, "expected 'deepseek2', found a list"),
        ({"deepseek2.block_count": NUMBERS}, "block_count: expected one value, found a list"),
        ({"deepseek2.rope.scaling.type": ["yarn"]}, "scaling.type: expected one value, found a li"),
        ({"deepseek2.expert_group_count": NUMBERS}, "expert_group_count: expected one value"),
        ({"deepseek2." + "x" * 9999: NUMBERS}, "xxx...: expected one value, found a list"),
        ({"deepseek2.rope.scaling.yarn_log_multiplier": "1"}, "expected a number, found '1'"),
        ({"deepseek2.rope.freq_base": 1e300}, "rope_theta: expected a finite number up to"),
        ({"deepseek2.expert_weights_scale": float("nan")}, "expected a finite number up to"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_values_of_another_kind_are_named(changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(changes)
