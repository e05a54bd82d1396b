from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from shoal.graphs.errors import BundleError, InputError, RuntimeFailure
from shoal.graphs.manifest import checksum
from shoal.runtime import open_bundle
from shoal.runtime.dialogue.dialogue import Dialogue
from shoal.runtime.engine import session
from shoal.runtime.kernels.library import KernelLibrary, find_library
from shoal.runtime.machine.processor import default_threads, read_cpu

TEMPLATE = """{% for message in messages %}<|{{ message.role }}|>{{ message.content }}
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""


class Copy:
    """A copy of a bundle that can be changed and sealed again, as an attacker would."""

    def __init__(self, source, folder):
        self.folder = folder
        shutil.copytree(source, folder)
        self.manifest = json.loads((folder / "manifest.json").read_text())

    def replace(self, name, content):
        (self.folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self.manifest["files"][name] = {"size": len(content), "sha256": digest}

    def remove(self, name):
        (self.folder / name).unlink()
        del self.manifest["files"][name]

    def seal(self):
        self.manifest["manifest_sha256"] = checksum(self.manifest)
        (self.folder / "manifest.json").write_text(json.dumps(self.manifest))
        return self.folder


@pytest.fixture
def copy(fp32_bundle, tmp_path):
    return Copy(fp32_bundle, tmp_path / "copy")


def refusal(error, folder):
    """The one line that opening a bundle is refused with."""
    with pytest.raises(error) as raised:
        open_bundle(folder, threads=1)
    assert str(raised.value).isprintable()
    return str(raised.value)


def test_options_are_reported_and_defaults_chosen(fp32_bundle, int8_bundle):
    best = "native" if isinstance(find_library(), KernelLibrary) else "portable"
    model = open_bundle(str(int8_bundle), kernels="auto")
    assert (model.threads, model.kernels) == (default_threads(read_cpu()), best)
    assert model.config["model_type"] == "deepseek_v3"
    assert open_bundle(int8_bundle, threads=3, kernels="portable").kernels == "portable"
    assert open_bundle(fp32_bundle, threads=3, kernels="portable").threads == 3


def test_native_kernels_that_are_not_there_are_not_replaced_silently(int8_bundle, monkeypatch):
    monkeypatch.setattr(session, "find_library", lambda: "no native kernels installed; build them")
    with pytest.raises(RuntimeFailure, match="no native kernels installed; build them; or use"):
        open_bundle(int8_bundle, kernels="native")
    assert open_bundle(int8_bundle, kernels="auto").kernels == "portable"


def test_float_weights_run_in_the_portable_form_and_say_so(fp32_bundle, monkeypatch):
    library = KernelLibrary(path=Path("k.so"), ops=("Linear",), isa="avx2", isas=("avx2",))
    monkeypatch.setattr(session, "find_library", lambda: library)
    assert open_bundle(fp32_bundle, kernels="auto").kernels == "portable"
    with pytest.raises(RuntimeFailure, match="native kernels need int8 weights, found fp32"):
        open_bundle(fp32_bundle, kernels="native")


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": True}, {"kernels": "fast"}])
def test_options_out_of_range_are_refused(fp32_bundle, options):
    with pytest.raises(InputError, match=next(iter(options))):
        open_bundle(fp32_bundle, **options)


def test_text_goes_to_ids_and_back(fp32_bundle):
    model = open_bundle(fp32_bundle, threads=1)
    ids = model.encode("Once upon a time")
    assert ids[0] == model.manifest.model.bos_token_id
    assert model.encode("Once upon a time", add_special_tokens=False) == ids[1:]
    assert model.decode(ids) == "Once upon a time"
    assert model.decode(ids, skip_special_tokens=False).startswith("<|begin_of_sentence|>")
    number: Any = 3
    with pytest.raises(InputError, match="encode expects"):
        model.encode(number)
    with pytest.raises(InputError, match="half of a surrogate pair; remove it"):
        model.encode("\ud800")
    with pytest.raises(InputError, match="token id 4096"):
        model.decode([4096])


def test_a_base_model_refuses_to_chat_and_says_what_to_do(fp32_bundle):
    model = open_bundle(fp32_bundle, threads=1)
    assert not model.has_chat_template
    with pytest.raises(InputError, match="base model without a chat template; give it text"):
        model.chat([{"role": "user", "content": "Hello"}])


def test_a_chat_is_the_generation_from_the_rendered_template(copy):
    copy.replace("chat_template.jinja", TEMPLATE.encode())
    model = open_bundle(copy.seal(), threads=1)
    messages = [{"role": "user", "content": "Hello"}]
    ids = model.encode("<|user|>Hello\n<|assistant|>", add_special_tokens=False)
    assert model.chat_ids(messages) == ids
    pieces = list(model.chat(messages, max_new_tokens=12))
    assert "".join(pieces) == "".join(model.generate(ids, max_new_tokens=12).pieces())
    assert model.has_chat_template


def test_without_a_tokenizer_ids_still_work(copy):
    copy.remove("tokenizer.json")
    model = open_bundle(copy.seal(), threads=1)
    assert not model.has_tokenizer
    assert len(list(model.generate([0, 5, 6], max_new_tokens=3, stop_tokens=()))) == 3
    for use in (
        lambda: model.encode("x"),
        lambda: model.chat_ids([{"role": "user", "content": "x"}]),
        lambda: model.generate([0], stop=["x"]),
        lambda: model.generate([0]).pieces(),
    ):
        with pytest.raises(InputError, match="tokenizer"):
            use()


def test_a_damaged_tokenizer_is_reported_when_text_is_used(copy):
    copy.replace("tokenizer.json", b"{}")
    model = open_bundle(copy.seal(), threads=1)
    with pytest.raises(BundleError, match="model: expected an object"):
        model.encode("x")


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_encoded(copy):
    copy.replace("chat_template.jinja", TEMPLATE.encode())
    model = open_bundle(copy.seal(), threads=1)
    text = "x" * (15 << 20)  # to encode it takes 10 s and 2 GB
    turn = [{"role": "user", "content": text}]
    expected = r"^text: expected at most \d+ bytes, the most that 2048 tokens can hold, found"
    started_s = time.monotonic()
    for use in (
        lambda: model.encode(text, max_tokens=model.max_context),
        lambda: model.chat(turn),
        lambda: Dialogue(model, {}, chat=False).answer(text, print),
        lambda: Dialogue(model, {}, chat=True).answer(text, print),
    ):
        with pytest.raises(InputError, match=expected):
            use()
    assert time.monotonic() - started_s < 5


@pytest.mark.parametrize("name", ["decoder.onnx", "manifest.json"])
def test_a_changed_byte_is_found_on_opening(fp32_bundle, tmp_path, name):
    folder = Copy(fp32_bundle, tmp_path / "copy").folder
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert name in refusal(BundleError, folder)


@pytest.mark.parametrize("name", ["decoder.onnx", "head.onnx"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 9, None])
def test_a_graph_that_is_none_is_refused_even_with_a_correct_manifest(copy, name, content):
    if content is None:
        graph = (copy.folder / name).read_bytes()
        content = graph[: len(graph) // 2]
    copy.replace(name, content)
    assert f"{name}: is no graph of a bundle" in refusal(BundleError, copy.seal())


def test_a_graph_of_another_shape_than_the_manifest_is_refused(copy):
    copy.manifest["graphs"]["decoder"] = "head.onnx"
    message = refusal(BundleError, copy.seal())
    assert "head.onnx: inputs or outputs differ from the manifest at 'cache.0'" in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("hidden_size", 8, "differ from the manifest"),
        ("vocab_size", 5000, "of 4096 rows, expected vocab_size 5000"),
        ("kv_lora_rank", 64, "differ from the manifest"),
        ("num_experts_per_tok", 2, "differ from the manifest"),
    ],
)
def test_a_manifest_of_another_model_than_the_graphs_is_refused(copy, key, value, expected):
    copy.manifest["model"][key] = value
    assert expected in refusal(BundleError, copy.seal())


def test_an_embedding_smaller_than_the_vocabulary_is_refused(copy):
    # An id beyond the table would read foreign memory: the int8 gather checks no bounds.
    embedding = copy.manifest["tensors"]["embed_tokens.weight"]
    embedding["shape"][0] //= 2
    embedding["size"] //= 2
    for path in copy.folder.glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False)
        for tensor in graph.graph.initializer:
            if tensor.name == "embed_tokens.weight":
                tensor.dims[0] //= 2
                (length,) = (entry for entry in tensor.external_data if entry.key == "length")
                length.value = str(embedding["size"])
        copy.replace(path.name, graph.SerializeToString())
    assert "of 2048 rows, expected vocab_size 4096" in refusal(BundleError, copy.seal())


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link.bin"])
def test_a_graph_that_reads_outside_the_bundle_is_refused(copy, tmp_path, location):
    (tmp_path / "secret").write_bytes(bytes(1 << 22))
    (copy.folder / "link.bin").symlink_to(tmp_path / "secret")
    graph = onnx.load(copy.folder / "head.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
            if entry.key == "offset":
                entry.value = "0"
    copy.replace("head.onnx", graph.SerializeToString())
    assert "does not take 'lm_head.weight' from where the manifest says" in refusal(
        BundleError, copy.seal()
    )


def test_weights_shorter_than_the_graph_says_are_refused(copy):
    weights = (copy.folder / "weights.bin").read_bytes()[:8192]
    copy.replace("weights.bin", weights)
    copy.manifest["tensors"] = {}
    copy.manifest["token_read_bytes"] = 0
    assert "does not take 'embed_tokens.weight' from where" in refusal(BundleError, copy.seal())
