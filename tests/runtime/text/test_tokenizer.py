from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shoal.graphs.errors import BundleError
from shoal.graphs.text.tokenizer_file import LONGEST_TOKENIZER_FILE
from shoal.runtime.text.text_stream import TextStream
from shoal.runtime.text.tokenizer import (
    Tokenizer,
    adds_bos,
    load_tokenizer,
    read_json_object,
    special_tokens,
    tokenizer_of,
)

pytestmark = pytest.mark.dependencies

TINY = Path(__file__).parents[3] / "checkpoints" / "tiny-v3"
TEXTS = ["Once upon a time", " leading", "", "深い海 123456", "<|user|>Hi<|assistant|>", "a\n\n b"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_ids_and_text_equal_transformers(tmp_path, text, special):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path)
    oracle = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = Tokenizer(TINY / "tokenizer.json")
    ids = tokenizer.encode(text, add_special_tokens=special)
    assert ids == oracle.encode(text, add_special_tokens=special)
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == oracle.decode(
            ids, skip_special_tokens=skip
        )


def test_a_beginning_that_only_the_config_names_is_added_once(tmp_path):
    content = json.loads((TINY / "tokenizer.json").read_text())
    content["post_processor"] = content["decoder"]  # one that adds nothing
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    bos = "<|begin_of_sentence|>"
    assert Tokenizer(path).encode("Hi")[0] != 0
    tokenizer = Tokenizer(path, add_bos=True, bos=bos)
    ids = tokenizer.encode("Hi")
    assert ids[0] == 0
    assert ids[1:] == tokenizer.encode("Hi", add_special_tokens=False)
    assert tokenizer.encode(bos + "Hi") == ids
    assert Tokenizer(TINY / "tokenizer.json", add_bos=True, bos=bos).encode("Hi") == ids


def test_truncation_and_padding_of_the_training_run_do_not_apply(tmp_path):
    content = json.loads((TINY / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    assert len(Tokenizer(path).encode("Once upon a time there was")) > 5


def test_special_tokens_are_texts_however_they_are_written():
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "pad_token": None,
        "add_bos_token": True,
        "model_max_length": 5,
    }
    assert special_tokens(config) == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("value", [["<s>"], {"content": 1}, {}, 7, True])
def test_a_special_token_that_is_no_text_is_refused(value):
    config = {"add_bos_token": True, "bos_token": value}
    with pytest.raises(BundleError, match=r"^tokenizer_config.json: bos_token: expected a text"):
        special_tokens(config)
    files = {name: (TINY / name).read_bytes() for name in ("tokenizer.json",)}
    with pytest.raises(BundleError, match=r"d/tokenizer_config.json: bos_token: expected a text"):
        tokenizer_of(files | {"tokenizer_config.json": json.dumps(config).encode()}, Path("d"))


def test_other_keys_that_look_like_special_tokens_are_left_alone():
    assert special_tokens({"num_image_token": 256, "pad_token": None}) == {}


@pytest.mark.parametrize("value", [1, "true", [True]])
def test_whether_a_beginning_is_added_must_be_true_or_false(value):
    with pytest.raises(BundleError, match="add_bos_token: expected true or false"):
        adds_bos({"add_bos_token": value}, Path("tokenizer_config.json"))


def test_ids_that_the_model_has_not_are_refused():
    with pytest.raises(BundleError, match=r"tokenizer.json: expected token ids below 100, found"):
        Tokenizer(TINY / "tokenizer.json", vocab_size=100).encode("Once upon a time")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_too_long_is_not_read(tmp_path, name):
    for each in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / each, tmp_path)
    with (tmp_path / name).open("r+b") as file:
        file.truncate(LONGEST_TOKENIZER_FILE + 1)
    with pytest.raises(BundleError, match=f"{name}: .*expected at most {LONGEST_TOKENIZER_FILE}"):
        load_tokenizer(tmp_path)


def test_a_decoder_that_fails_in_the_middle_of_an_answer_is_one_line(tmp_path):
    content = json.loads((TINY / "tokenizer.json").read_text())
    content["decoder"] = {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}
    content["model"]["vocab"]["x" * 40] = 5000
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    stream = TextStream(Tokenizer(path))
    stream.push(300)
    with pytest.raises(BundleError, match=r"tokenizer.json: the tokenizers library cannot use it"):
        stream.push(5000)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_config_that_is_no_object_is_a_damaged_bundle(tmp_path, content):
    path = tmp_path / "tokenizer_config.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="expected a JSON object"):
        read_json_object(path)
