"""Checkpoint folders: safetensors headers, their index and configs changed, then inspected."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from random import Random
from typing import Any

from safetensors import SafetensorError, safe_open
from tests.fuzz.checkpoint_use import use_checkpoint
from tests.fuzz.fuzz_format import Samples, Use, require
from tests.fuzz.json_mutations import change_json, change_json_text, json_bytes
from tests.fuzz.mutations import change_bytes, change_text, number_of_changes

from shoal.export.checkpoint.open_checkpoint import open_checkpoint
from shoal.export.checkpoint.safetensors_files import ITEM_BITS
from shoal.export.checkpoint.weight_files import INDEX_FILE, SINGLE_FILE

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_TEXTS = (_CONFIG, _GENERATION, "tokenizer_config.json", "tokenizer.json")
_DTYPES = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F64", "I8", "U8", "I64", "BOOL", "F4", "X")
_MANY_SHARDS, _LARGEST_DATA = 20_000, 1 << 29


class SafetensorsFormat:
    """Folders of a small model."""

    def __init__(self, samples: Samples) -> None:
        content = (samples.checkpoint / SINGLE_FILE).read_bytes()
        length = int.from_bytes(content[:8], "little")
        self._header = json.loads(content[8 : 8 + length])
        self._data = content[8 + length :]
        self._texts: dict[str, Any] = {
            name: json.loads((samples.checkpoint / name).read_bytes()) for name in _TEXTS
        }

    def prepare(self, rng: Random, folder: Path) -> Use:
        """See ``FuzzFormat``."""
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir()
        kind = rng.choice(("header", "header", "header", "index", _CONFIG, _CONFIG, _GENERATION))
        for name, value in self._texts.items():
            text = json_bytes(value)
            if name == kind:
                text = change_json_text(rng, json_bytes(change_json(rng, value)))
            (checkpoint / name).write_bytes(text)
        single = kind != "index"
        name = SINGLE_FILE if single else "model-00001-of-00001.safetensors"
        self._write_weights(rng, checkpoint / name, changed=kind == "header")
        if not single:
            index = {"metadata": {}, "weight_map": dict.fromkeys(self._header, name)}
            (checkpoint / INDEX_FILE).write_bytes(_changed_index(rng, index))
        elif rng.random() < 0.1:
            (checkpoint / INDEX_FILE).write_bytes(change_bytes(rng, b'{"weight_map": {}}'))
        return lambda: self._use(checkpoint)

    def _write_weights(self, rng: Random, path: Path, *, changed: bool) -> None:
        header, size = self._header, len(self._data)
        if changed and rng.random() < 0.4:
            header, size = _placed_again(rng, header)
        elif changed:
            header = change_json(rng, header)
        text = json_bytes(header)
        if changed:
            text = change_json_text(rng, text)
        start = len(text).to_bytes(8, "little")
        if changed and rng.random() < 0.15:
            start = change_bytes(rng, start)
        path.write_bytes(start + text + self._data)
        if changed and rng.random() < 0.1:
            size = rng.choice((0, size - 1, size + 1, size // 2, 1 << 29))
        os.truncate(path, len(start) + len(text) + size)

    def _use(self, folder: Path) -> None:
        checkpoint = open_checkpoint(folder)
        use_checkpoint(folder, checkpoint)
        if (folder / SINGLE_FILE).exists():
            self._compare(folder / SINGLE_FILE, checkpoint.tensors.headers)

    def _compare(self, path: Path, headers: Any) -> None:
        """What is accepted must be what the format's own library reads."""
        try:
            with safe_open(path, "numpy") as file:
                found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                shapes = {name: tuple(part.get_shape()) for name, part in found.items()}
        except (SafetensorError, OSError) as error:
            # Whole numbers beyond float64, in keys that nobody reads, are no fault.
            is_number = "number out of range" in str(error)
            require(is_number, f"a file that safetensors refuses: {error}")
            return
        ours = {name: header.shape for name, header in headers.items()}
        require(ours == shapes, "tensors that safetensors reads in another way")


def _placed_again(rng: Random, header: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """A few tensors changed and all of them put one after another; and the bytes they take."""
    entries = {name: dict(entry) for name, entry in header.items() if name != "__metadata__"}
    for _ in range(number_of_changes(rng)):
        name, other = rng.choice(list(entries)), rng.choice(list(entries))
        match rng.randrange(6):
            case 0:
                entries[name]["dtype"] = rng.choice(_DTYPES)
            case 1:
                entries[name]["shape"] = entries[other]["shape"]
            case 2:
                shape = [rng.choice((0, 1, 2, 16, 1 << 20)) for _ in range(rng.randrange(4))]
                entries[name]["shape"] = shape
            case 3:
                entries[change_text(rng, name)] = entries.pop(name)
            case 4:
                entries[f"{name}_scale_inv"] = dict(entries[other])
            case _:
                entries[name], entries[other] = entries[other], entries[name]
    end = 0
    for entry in entries.values():
        bits = ITEM_BITS.get(entry["dtype"], 8) * math.prod(entry["shape"])
        begin, end = end, end + bits // 8
        entry["data_offsets"] = [begin, end]
    return entries, min(end, _LARGEST_DATA)


def _changed_index(rng: Random, index: dict[str, Any]) -> bytes:
    if rng.random() < 0.02:
        names = [f"model-{number:05}-of-99999.safetensors" for number in range(_MANY_SHARDS)]
        index = {"weight_map": {f"t{number}": name for number, name in enumerate(names)}}
        return json_bytes(index)
    return change_json_text(rng, json_bytes(change_json(rng, index)))


def make(samples: Samples) -> SafetensorsFormat:
    """The format, from its samples."""
    return SafetensorsFormat(samples)
