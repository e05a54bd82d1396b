"""Reading manifest.json from anywhere: every field is checked before anything is believed.

A bundle may come from a stranger, so nothing here recurses, trusts a length or lets a text from
the file into a message unshortened.
"""

from __future__ import annotations

import math
import re
from typing import Any, NoReturn, TypeGuard

from shoal.graphs.cache_types import CACHE_TYPES, cache_block_size, graph_role
from shoal.graphs.contract import (
    FORMAT_VERSION,
    GRAPH_FILES,
    MANIFEST_FILE,
    MAX_DIMENSIONS,
    OP_SET_VERSION,
    WEIGHT_ALIGNMENT_BYTES,
    WEIGHTS_FILE,
)
from shoal.graphs.errors import BundleError
from shoal.graphs.manifest import FileInfo, Manifest, ModelInfo, TensorInfo, checksum
from shoal.graphs.message_parts import shortened
from shoal.graphs.parameters import KINDS, Parameter
from shoal.graphs.recipes import BLOCK_SIZES, WEIGHT_CHOICES, WeightFormat
from shoal.graphs.strict_json import strict_json

MAX_MANIFEST_BYTES = 8 << 20
"""Far above what the largest model needs: one tensor takes about 200 bytes."""

DTYPE_BITS = {"uint8": 8, "uint4": 4, "float32": 32}
"""The dtypes a tensor of weights.bin may have, and the bits of one value."""

_MAX_DEPTH = 64
_MAX_LIST = 1 << 16
_MAX_DIMENSION = (1 << 31) - 1
_MAX_COUNT = (1 << 63) - 1
_MAX_NAME_LENGTH = 128
_MAX_TEXT_LENGTH = 4096
_LARGEST_FIGURE = 1e100
_AGAIN = "copy the bundle again or re-export it"
_DIMENSIONS = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "max_position_embeddings",
)


def read_manifest(text: str | bytes, where: str) -> Manifest:
    """Read a manifest that comes from anywhere, and check every field of it.

    Args:
        text: content of manifest.json; UTF-8 if bytes.
        where: name of the file, for messages.

    Raises:
        BundleError: not JSON, changed since it was written, newer than this shoal, a field missing,
            unknown, of the wrong type or out of range, a file name that could leave the folder, a
            tensor that is no parameter, or one outside weights.bin.
    """
    content = _parse(text, where)
    _check_versions(content, where)
    _check_checksum(content, where)
    return _read_manifest(_Fields(content, where))


def is_plain_file_name(name: str) -> bool:
    """Whether ``name`` names a file directly in its folder on every operating system."""
    return (
        0 < len(name) <= _MAX_NAME_LENGTH
        and name not in (".", "..")
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
    )


def _parse(text: str | bytes, where: str) -> dict[str, Any]:
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{where}: expected at most {MAX_MANIFEST_BYTES} bytes, found {len(text)}; {_AGAIN}"
        )
    try:
        content = strict_json(text)
    except RecursionError as error:
        raise BundleError(f"{where}: nested deeper than {_MAX_DEPTH} levels; {_AGAIN}") from error
    except ValueError as error:  # bad UTF-8, bad JSON, numbers of thousands of digits
        raise BundleError(f"{where}: not a JSON object: {_short(str(error))}; {_AGAIN}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{where}: expected a JSON object, found {_short(content)}; {_AGAIN}")
    _check_depth(content, where)
    return content


def _check_depth(content: Any, where: str) -> None:
    # Level by level rather than by recursion: the depth is the attacker's choice.
    level = [content]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, (dict, list))
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise BundleError(f"{where}: nested deeper than {_MAX_DEPTH} levels; {_AGAIN}")


def _check_versions(content: dict[str, Any], where: str) -> None:
    for key, known in (("format_version", FORMAT_VERSION), ("op_set_version", OP_SET_VERSION)):
        found = content.get(key)
        if not _is_integer(found) or found < 1:
            raise BundleError(
                f"{where}: {key} must be a positive integer, found {_short(found)}; {_AGAIN}"
            )
        if found > known:
            raise BundleError(
                f"{where}: {key} {found} is newer than {known}; upgrade shoal or re-export"
            )


def _check_checksum(content: dict[str, Any], where: str) -> None:
    if content.get("manifest_sha256") != checksum(content):
        raise BundleError(
            f"{where}: manifest_sha256 does not match, so the manifest was changed after the "
            f"export; {_AGAIN}"
        )


class _Fields:
    """The fields of one JSON object, each taken once and checked."""

    def __init__(self, content: Any, where: str) -> None:
        if not isinstance(content, dict):
            raise BundleError(f"{where}: expected an object, found {_short(content)}; {_AGAIN}")
        self.content = dict(content)
        self.where = where

    def take(self, key: str) -> Any:
        if key not in self.content:
            raise BundleError(f"{self.where}: {key} is missing; {_AGAIN}")
        return self.content.pop(key)

    def refuse(self, key: str, expected: str, found: Any) -> NoReturn:
        raise BundleError(
            f"{self.where}: {_short(key)} must be {expected}, found {_short(found)}; {_AGAIN}"
        )

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.take(key)
        if not _is_integer(value) or not low <= value <= high:
            self.refuse(key, f"an integer in {low}..{high}", value)
        return int(value)

    def choice(self, key: str, choices: tuple[int, ...]) -> int:
        value = self.take(key)
        if not _is_integer(value) or value not in choices:
            self.refuse(key, "one of " + ", ".join(map(str, choices)), value)
        return int(value)

    def integers(self, key: str, low: int, high: int, most: int = _MAX_LIST) -> tuple[int, ...]:
        values = self.take(key)
        if not isinstance(values, list) or len(values) > most:
            self.refuse(key, f"a list of at most {most} integers", values)
        if not all(_is_integer(value) and low <= value <= high for value in values):
            self.refuse(key, f"a list of integers in {low}..{high}", values)
        return tuple(values)

    def text(self, key: str, choices: tuple[str, ...] = ()) -> str:
        value = self.take(key)
        if not _is_text(value) or not value.isprintable() or (choices and value not in choices):
            plain = f"a text of at most {_MAX_TEXT_LENGTH} printable letters"
            self.refuse(key, "one of " + ", ".join(choices) if choices else plain, value)
        return str(value)

    def fields(self, key: str) -> _Fields:
        return _Fields(self.take(key), f"{self.where}: {_short(key)}")

    def end(self) -> None:
        if self.content:
            unknown = ", ".join(_short(key) for key in list(self.content)[:5])
            raise BundleError(f"{self.where}: unknown key {unknown}; {_AGAIN}")


def _read_manifest(fields: _Fields) -> Manifest:
    fields.take("manifest_sha256")
    files = _read_files(fields.fields("files"))
    weights_size = files[WEIGHTS_FILE].size
    notes = fields.take("notes")
    if not isinstance(notes, list) or not all(map(_is_text, notes)):
        fields.refuse("notes", f"a list of texts of at most {_MAX_TEXT_LENGTH} letters", notes)
    weights = fields.text("weights", WEIGHT_CHOICES)
    manifest = Manifest(
        format_version=fields.take("format_version"),
        op_set_version=fields.take("op_set_version"),
        shoal_version=fields.text("shoal_version"),
        weights=weights,
        model=_read_model(fields.fields("model")),
        graphs=_read_graphs(fields.fields("graphs"), files),
        files=files,
        tensors=_read_tensors(fields.fields("tensors"), weights_size),
        token_read_bytes=fields.integer("token_read_bytes", 0, weights_size),
        config=fields.fields("config").content,
        fidelity=_read_fidelity(fields),
        formats=_read_formats(fields.fields("formats")),
        notes=tuple(notes),
    )
    fields.end()
    _check_roles(fields, manifest)
    return manifest


def _check_roles(fields: _Fields, manifest: Manifest) -> None:
    """Refuse graphs that cannot be together, or not be of this model."""
    graphs = manifest.graphs
    if ("mtp" in graphs) != (manifest.model.num_mtp_layers > 0):
        fields.refuse("graphs", "with an mtp graph exactly if num_mtp_layers is 1", graphs)
    for cache_type in CACHE_TYPES[1:]:
        found = {role for role in ("decoder", "mtp") if graph_role(role, cache_type) in graphs}
        if found and found != {"decoder", "mtp"} & set(graphs):
            fields.refuse("graphs", f"complete for {cache_type} caches", graphs)
    rank = manifest.model.kv_lora_rank
    if any(role.endswith(".int8") for role in graphs) and cache_block_size(rank) is None:
        fields.refuse("kv_lora_rank", "a multiple of 16 with graphs for int8 caches", rank)


def _read_fidelity(fields: _Fields) -> dict[str, Any] | None:
    """What an export measured. Others may measure more, but nothing that is no text or number."""
    if fields.content.get("fidelity") is None:
        fields.take("fidelity")
        return None
    measured = fields.fields("fidelity")
    for key, value in measured.content.items():
        inner = value.values() if isinstance(value, dict) else value
        if not all(map(_is_figure, inner if isinstance(value, (dict, list)) else [value])):
            measured.refuse(key, f"short texts and numbers up to {_LARGEST_FIGURE:.0e}", value)
    return measured.content


def _is_figure(value: Any) -> bool:
    if isinstance(value, (int, float)):
        return abs(value) <= _LARGEST_FIGURE
    return value is None or _is_text(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT_LENGTH


def _read_formats(fields: _Fields) -> dict[str, WeightFormat]:
    formats = {}
    for kind in list(fields.content):
        if kind not in KINDS:
            fields.refuse("a kind of weight", "one of " + ", ".join(KINDS), kind)
        entry = fields.fields(kind)
        formats[kind] = WeightFormat(
            bits=entry.choice("bits", (4, 8)),
            block_size=entry.choice("block_size", BLOCK_SIZES),
            input_terms=entry.choice("input_terms", (1, 2)),
        )
        entry.end()
    return formats


def _read_model(fields: _Fields) -> ModelInfo:
    model_type = fields.text("model_type")
    dimensions = {key: fields.integer(key, 1, _MAX_DIMENSION) for key in _DIMENSIONS}
    layers = fields.integer("num_hidden_layers", 1, _MAX_LIST)
    moe_layers = fields.integers("moe_layers", 0, layers - 1)
    if list(moe_layers) != sorted(set(moe_layers)):
        fields.refuse("moe_layers", "a rising list", list(moe_layers))
    lowest = 1 if moe_layers else 0
    num_experts = fields.integer("n_routed_experts", lowest, _MAX_DIMENSION)
    last_token = dimensions["vocab_size"] - 1
    bos = fields.content.get("bos_token_id")
    model = ModelInfo(
        model_type=model_type,
        **dimensions,
        num_hidden_layers=layers,
        moe_layers=moe_layers,
        n_routed_experts=num_experts,
        num_experts_per_tok=fields.integer("num_experts_per_tok", lowest, num_experts),
        num_mtp_layers=fields.integer("num_mtp_layers", 0, 1),
        parameters=fields.integer("parameters", 1, _MAX_COUNT),
        active_parameters=fields.integer("active_parameters", 1, _MAX_COUNT),
        eos_token_ids=fields.integers("eos_token_ids", 0, last_token),
        bos_token_id=fields.take("bos_token_id")
        if bos is None
        else fields.integer("bos_token_id", 0, last_token),
    )
    fields.end()
    return model


def _read_files(fields: _Fields) -> dict[str, FileInfo]:
    files = {}
    for name in list(fields.content):
        if not is_plain_file_name(name) or name == MANIFEST_FILE:
            fields.refuse("a file", "named plainly, without a folder", name)
        entry = fields.fields(name)
        size = entry.integer("size", 0, _MAX_COUNT)
        sha256 = entry.text("sha256")
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            entry.refuse("sha256", "64 lower-case hexadecimal digits", sha256)
        entry.end()
        files[name] = FileInfo(size=size, sha256=sha256)
    if WEIGHTS_FILE not in files:
        raise BundleError(f"{fields.where}: {WEIGHTS_FILE} is missing; {_AGAIN}")
    return files


def _read_graphs(fields: _Fields, files: dict[str, FileInfo]) -> dict[str, str]:
    graphs = {}
    for role in list(fields.content):
        if role not in GRAPH_FILES:
            fields.refuse("a graph", "one of " + ", ".join(GRAPH_FILES), role)
        name = fields.text(role)
        if name not in files or name == WEIGHTS_FILE:
            fields.refuse(role, "a graph file listed under files", name)
        graphs[role] = name
    for role in ("decoder", "head"):
        if role not in graphs:
            raise BundleError(f"{fields.where}: {role} is missing; {_AGAIN}")
    return graphs


def _read_tensors(fields: _Fields, weights_size: int) -> dict[str, TensorInfo]:
    tensors = {}
    for name in list(fields.content):
        _check_tensor_name(name, fields.where)
        entry = fields.fields(name)
        dtype = entry.text("dtype", tuple(DTYPE_BITS))
        shape = entry.integers("shape", 1, _MAX_DIMENSION, MAX_DIMENSIONS)
        size = entry.integer("size", 1, weights_size)
        if size * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
            entry.refuse("size", f"the bytes of {dtype} {list(shape)}", size)
        offset = entry.integer("offset", 0, weights_size - size)
        if offset % WEIGHT_ALIGNMENT_BYTES:
            entry.refuse("offset", f"a multiple of {WEIGHT_ALIGNMENT_BYTES}", offset)
        entry.end()
        tensors[name] = TensorInfo(dtype=dtype, shape=shape, offset=offset, size=size)
    _check_no_overlap(fields, tensors)
    return tensors


def _check_tensor_name(name: str, where: str) -> None:
    try:
        Parameter.parse(name)
    except BundleError as error:
        raise BundleError(f"{where}: {error}") from error


def _check_no_overlap(fields: _Fields, tensors: dict[str, TensorInfo]) -> None:
    end, previous = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < end:
            fields.refuse(name, f"beyond the end of {_short(previous)}", tensor.offset)
        end, previous = tensor.offset + tensor.size, name


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    # Whatever the file says becomes one short printable line.
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    return shortened(value if isinstance(value, str) else repr(value))
