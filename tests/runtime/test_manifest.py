from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.graphs.errors import BundleError
from shoal.graphs.manifest import Manifest, checksum
from shoal.graphs.manifest_reader import MAX_MANIFEST_BYTES, is_plain_file_name, read_manifest


def read(content: dict[str, Any]) -> Manifest:
    return read_manifest(
        json.dumps(content | {"manifest_sha256": checksum(content)}), "bundle/manifest.json"
    )


def set_at(content: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        content = content[key]
    if value is ...:
        del content[path[-1]]
    else:
        content[path[-1]] = value


def test_a_manifest_that_was_written_reads_back_equal(fake_bundle):
    assert read_manifest(fake_bundle.manifest.to_json(), "m") == fake_bundle.manifest
    bare = dataclasses.replace(fake_bundle.manifest, fidelity=None, notes=())
    assert read_manifest(bare.to_json().encode(), "m") == bare


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("format_version",), 3, "format_version 3 is newer than 1; upgrade shoal or re-export"),
        (("op_set_version",), 2, "op_set_version 2 is newer than 1"),
        (("format_version",), True, "format_version must be a positive integer"),
        (("format_version",), ..., "format_version must be a positive integer"),
        (("format_version",), 0, "format_version must be a positive integer"),
        (("weights",), "int4", "weights must be one of int8, int8-accurate"),
        (("shoal_version",), 1, "shoal_version must be a text"),
        (("surprise",), 1, "unknown key surprise"),
        (("model",), [], "model: expected an object, found a list of 0 entries"),
        (("model", "vocab_size"), ..., "vocab_size is missing"),
        (("model", "vocab_size"), 0, "vocab_size must be an integer in 1.."),
        (("model", "vocab_size"), 16.0, "vocab_size must be an integer"),
        (("model", "vocab_size"), True, "vocab_size must be an integer"),
        (("model", "num_hidden_layers"), 10**9, "num_hidden_layers must be an integer in 1..65536"),
        (("model", "moe_layers"), [2, 1], "moe_layers must be a rising list"),
        (("model", "moe_layers"), [3], "moe_layers must be a list of integers in 0..2"),
        (("model", "num_experts_per_tok"), 9, "num_experts_per_tok must be an integer in 1..8"),
        (("model", "num_mtp_layers"), 1, "graphs must be with an mtp graph exactly if"),
        (("model", "eos_token_ids"), [256], "eos_token_ids must be a list of integers in 0..255"),
        (("model", "bos_token_id"), -1, "bos_token_id must be an integer in 0..255"),
        (("graphs", "decoder"), ..., "decoder is missing"),
        (("graphs", "decoder"), "other.onnx", "decoder must be a graph file listed under files"),
        (("graphs", "draft"), "head.onnx", "a graph must be one of decoder, "),
        (("files", "weights.bin"), ..., "weights.bin is missing"),
        (("files", "../x"), {"size": 1, "sha256": "0" * 64}, "must be named plainly"),
        (("files", "manifest.json"), {"size": 1, "sha256": "0" * 64}, "must be named plainly"),
        (("files", "head.onnx", "size"), -1, "size must be an integer in 0.."),
        (("files", "head.onnx", "sha256"), "F" * 64, "64 lower-case hexadecimal digits"),
        (("files", "head.onnx", "mode"), 1, "unknown key mode"),
        (
            ("tensors", "norm.weight", "dtype"),
            "float16",
            "dtype must be one of uint8, uint4, float32",
        ),
        (("tensors", "norm.weight", "shape"), [9], "size must be the bytes of float32 [9]"),
        (("tensors", "norm.weight", "shape"), [-8], "shape must be a list of integers in 1.."),
        (("tensors", "norm.weight", "offset"), 4100, "offset must be a multiple of 4096"),
        (("tensors", "norm.weight", "offset"), 8192, "offset must be an integer in 0..8160"),
        (("tensors", "norm.weight", "offset"), 0, "beyond the end of"),
        (
            ("tensors", "norm"),
            {},
            "tensors: 'norm' is no name of a parameter that this shoal knows",
        ),
        (("tensors", "a\n\u001b" * 99), {}, "tensors: 'a\\n\\x1ba\\n\\x1b"),
        (("tensors", "norm.weight", "shape"), [8] + [1] * 8, "shape must be a list of at most 8"),
        (("tensors", "norm.weight", "shape"), [2**31 - 1] * 60_000, "found a list of 60000 entr"),
        (
            ("tensors", "norm.weight"),
            {"dtype": "uint4", "shape": [2**31 - 1] * 8, "offset": 4096, "size": 32},
            "size must be the bytes of uint4",
        ),
        (("model", "parameters"), 0, "parameters must be an integer in 1.."),
        (("model", "active_parameters"), 0, "active_parameters must be an integer in 1.."),
        (("model", "parameters"), 10**400, "parameters must be an integer in 1.."),
        (("fidelity", "kl_mean"), 10**400, "fidelity: kl_mean must be short texts and numbers up"),
        (("fidelity", "tokens"), -(10**400), "fidelity: tokens must be short texts and numbers up"),
        (("fidelity", "text"), "x" * 5000, "fidelity: text must be short texts and numbers up"),
        (("fidelity", "calibration"), {"tokens": 10**400}, "found an object of 1 entries"),
        (("fidelity", "calibration"), [[1]], "found a list of 1 entries"),
        (("shoal_version",), "x" * 5000, "shoal_version must be a text of at most 4096 printable"),
        (("shoal_version",), "\u2028", "shoal_version must be a text of at most 4096 printable"),
        (("notes",), ["x" * 5000], "notes must be a list of texts of at most 4096 letters"),
        (("token_read_bytes",), 8193, "token_read_bytes must be an integer in 0..8192"),
        (("formats",), ..., "formats is missing"),
        (("formats",), {"glue": {}}, "a kind of weight must be one of embedding, head"),
        (("formats",), {"head": {"bits": 6}}, "head: bits must be one of 4, 8, found 6"),
        (("formats",), {"head": {"bits": 8, "block_size": 48}}, "block_size must be one of 16, 32"),
        (("config",), None, "config: expected an object"),
        (("fidelity",), [], "fidelity: expected an object"),
        (("notes",), [1], "notes must be a list of texts"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(fake_bundle, path, value, expected):
    content = fake_bundle.content()
    set_at(content, path, value)
    with pytest.raises(BundleError) as raised:
        read(content)
    message = str(raised.value)
    assert message.startswith("bundle/manifest.json: ")
    assert expected in message
    assert "\n" not in message


def test_int8_caches_need_latents_that_have_blocks(fake_bundle):
    content = fake_bundle.content()
    content["graphs"]["decoder.int8"] = "decoder.onnx"
    read(content)
    content["model"]["kv_lora_rank"] = 24
    with pytest.raises(BundleError, match="kv_lora_rank must be a multiple of 16 with graphs"):
        read(content)


def test_a_changed_manifest_is_found_by_its_checksum(fake_bundle):
    text = fake_bundle.manifest.to_json().replace("a note", "a nota")
    with pytest.raises(BundleError, match="manifest_sha256 does not match"):
        read_manifest(text, "m")


MANY_KEYS_AND_THE_LAST_TWICE = (
    "{" + ",".join(f'"{min(key, 299_999)}":1' for key in range(300_001)) + "}"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not a JSON object"),
        ("garbage", "not a JSON object"),
        ("[1]", "found a list of 1 entries"),
        ("3", "expected a JSON object"),
        ('{"a": 1, "a": 2}', "key a twice"),
        ('{"a": NaN}', "NaN, which is no JSON number"),
        (r'{"a": "\ud800"}', "not a JSON object"),
        (MANY_KEYS_AND_THE_LAST_TWICE, "key 299999 twice"),
        ('{"a": ' + "9" * 5000 + "}", "not a JSON object"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested deeper than 64 levels"),
        ('{"a": ' + "[" * 200_000, "nested deeper than 64 levels"),
        ('{"format_version": "' + "\\n\\u001b" * 99 + '"}', "format_version must be"),
        (b"\xff\xfe", "not a JSON object"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "expected at most"),
    ],
)
def test_garbage_is_refused_in_one_short_line(text, expected):
    with pytest.raises(BundleError) as raised:
        read_manifest(text, "m")
    message = str(raised.value)
    assert expected in message
    assert message.isprintable()
    assert len(message) < 250


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_value_anywhere_causes_another_error_than_ours(fake_bundle, data):
    content = fake_bundle.content()
    node, path = content, []
    while isinstance(node, (dict, list)) and node:
        keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
        path.append(data.draw(st.sampled_from(keys)))
        node = node[path[-1]]
        if data.draw(st.booleans()):
            break
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    value = data.draw(st.recursive(leaves, lambda x: st.lists(x, max_size=3), max_leaves=5))
    set_at(content, tuple(path), value)
    try:
        manifest = read(content)
    except BundleError as error:
        assert str(error).isprintable()  # noqa: PT017  both outcomes are correct
    else:
        assert manifest == read_manifest(manifest.to_json(), "again")


def test_a_size_that_only_floating_point_takes_for_that_of_the_shape_is_refused(fake_bundle):
    content = fake_bundle.content()
    shape = [2**31 - 1, 2**31 - 1, 2]
    content["files"]["weights.bin"]["size"] = 2**63 - 1
    size = int(shape[0] * shape[1] * 2 * 0.5)
    assert size != shape[0] * shape[1]
    content["tensors"] = {
        "norm.weight": {"dtype": "uint4", "shape": shape, "offset": 0, "size": size}
    }
    with pytest.raises(BundleError, match="size must be the bytes of uint4"):
        read(content)


def test_only_names_directly_in_the_folder_are_plain():
    assert is_plain_file_name("decoder.onnx")
    assert is_plain_file_name("..data")
    for name in ("", ".", "..", "a/b", "/a", "a\\b", "C:a", "a\0b", "a\nb", "\ud800", "a" * 129):
        assert not is_plain_file_name(name)
