from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shoal.graphs.errors import BundleError
from shoal.runtime.text.tokenizer import Tokenizer, read_json_object, special_tokens

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


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_config_that_is_no_object_is_a_damaged_bundle(tmp_path, content):
    path = tmp_path / "tokenizer_config.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="expected a JSON object"):
        read_json_object(path)
