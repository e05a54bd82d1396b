"""docs/format.md says of names, fields and numbers what the code says."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import onnx
import pytest
from tests.docs.public_api import ROOT

from shoal.graphs import contract, graph_rules, manifest_reader
from shoal.graphs.cache_types import CACHE_TYPES, LARGEST_CACHE_BLOCK, cache_parts
from shoal.graphs.manifest import FileInfo, Manifest, ModelInfo, TensorInfo
from shoal.graphs.parameters import KINDS, Place
from shoal.graphs.recipes import BLOCK_SIZES, WEIGHT_CHOICES, WeightFormat

PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")


def rows_after(start: str) -> list[list[str]]:
    """The cells of the first table after a text, without its head."""
    lines = PAGE[PAGE.index(start) :].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| "))
    table = []
    for line in lines[first + 2 :]:
        if not line.startswith("| "):
            break
        table.append([cell.strip() for cell in line.strip("|").split(" |")])
    return table


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def names_after(start: str) -> list[str]:
    """What is quoted in the first column of a table."""
    return [name for row in rows_after(start) for name in quoted(row[0])]


@pytest.mark.parametrize(
    ("start", "kind"),
    [("## manifest.json", Manifest), ("`model`, with", ModelInfo), ("An entry of", TensorInfo)],
)
def test_every_field_is_listed(start: str, kind: Any) -> None:
    names = {field.name for field in fields(kind)}
    assert set(names_after(start)) == names | ({"manifest_sha256"} if kind is Manifest else set())


@pytest.mark.parametrize(("key", "kind"), [("files", FileInfo), ("formats", WeightFormat)])
def test_every_field_of_an_entry_is_named(key: str, kind: Any) -> None:
    (row,) = [row for row in rows_after("## manifest.json") if row[0] == f"`{key}`"]
    assert {field.name for field in fields(kind)} <= set(quoted(row[1]))


def test_every_file_of_a_bundle_is_listed() -> None:
    names = {contract.MANIFEST_FILE, contract.WEIGHTS_FILE}
    names |= {*contract.GRAPH_FILES.values(), *contract.TOKENIZER_FILES}
    assert set(names_after("## The folder")) == names


def test_recipes_and_roles_are_listed() -> None:
    rows = {row[0]: quoted(row[1]) for row in rows_after("## manifest.json")}
    assert rows["`weights`"] == list(WEIGHT_CHOICES)
    *roles, head, first, second = rows["`graphs`"]
    assert (head, first, second) == ("head", *(f".{name}" for name in CACHE_TYPES[1:]))
    plain = {role for role in contract.GRAPH_FILES if "." not in role}
    assert set(roles) == plain
    assert set(contract.GRAPH_FILES) == plain | {
        f"{role}{suffix}" for role in plain - {"head"} for suffix in (first, second)
    }


def test_every_part_is_listed_with_its_place_and_kind() -> None:
    places = {
        "model": [Place.MODEL],
        "module": [Place.MTP],
        "layer": [Place.LAYER, Place.MTP_LAYER],
    }
    listed: dict[Place, dict[str, str | None]] = {place: {} for place in Place}
    for parts, where, kind in rows_after("The parts, and the kind"):
        for place in [place for word in where.split(", ") for place in places[word]]:
            listed[place] |= dict.fromkeys(quoted(parts), quoted(kind)[0] if kind else None)
    assert listed == {place: dict(place.parts) for place in Place}
    kinds = {kind for parts in listed.values() for kind in parts.values() if kind}
    assert kinds == set(KINDS)


def test_numbers_are_those_of_the_code() -> None:
    assert f"# The bundle format, version {contract.FORMAT_VERSION}\n" in PAGE
    assert f"multiples of {contract.WEIGHT_ALIGNMENT_BYTES} bytes" in PAGE
    assert f"ONNX opset {contract.ONNX_OPSET}, version {contract.OP_SET_VERSION} of" in PAGE
    assert f"at most {manifest_reader.MAX_MANIFEST_BYTES >> 20} MiB and 64 levels deep" in PAGE
    assert f"`slot_rows` int64 [{contract.BATCH_SLOTS}]" in PAGE
    assert f"`block_size` ({', '.join(map(str, BLOCK_SIZES[:-1]))} or {BLOCK_SIZES[-1]})" in PAGE
    assert f"A constant has\n  {graph_rules._MAX_CONSTANT_BYTES} bytes at most" in PAGE
    assert f"a graph file {graph_rules.MAX_GRAPH_BYTES >> 20} MiB" in PAGE
    assert f"the largest of {LARGEST_CACHE_BLOCK}, 32 and 16 that divides C" in PAGE


def test_the_tensors_of_each_cache_are_listed() -> None:
    for cache_type, (_, text) in zip(CACHE_TYPES, rows_after("| cache | tensors"), strict=True):
        for part in cache_parts(cache_type, 64, 32):
            assert f"`{part.name}.L` {part.dtype}" in text


@pytest.mark.parametrize("role", ["decoder", "head", "mtp", "batch"])
def test_inputs_and_outputs_are_those_of_a_bundle(role: str, int8_bundle: Path) -> None:
    graph = onnx.load(int8_bundle / contract.GRAPH_FILES[role], load_external_data=False).graph
    tables = {row[0]: row[1:] for row in rows_after("| graph | inputs")}
    for values, text in zip((graph.input, graph.output), tables[role], strict=True):
        named = set(quoted(text))
        if "as decoder" in text:
            named |= set(quoted(tables["decoder"][values is graph.output]))
        general = {re.sub(r"\.\d+\.\d+$", ".L.SLOT", value.name) for value in values}
        if role != "mtp":  # which has one layer, number 0
            general = {re.sub(r"\.\d+$", ".L", name) for name in general}
        if role == "batch":
            named -= {"cache.L", "cache_out.L"}
        assert general == named
