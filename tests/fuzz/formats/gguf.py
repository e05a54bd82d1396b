"""GGUF files: keys, values and entries of tensors changed, then inspected."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tests.export.checkpoint.gguf_writer import gguf_tensors, metadata_of, vocabulary_of
from tests.fuzz.checkpoint_use import use_checkpoint
from tests.fuzz.fuzz_format import Samples, Use
from tests.fuzz.mutations import (
    FLOATS,
    INTEGERS,
    TEXTS,
    change_bytes,
    change_integer,
    change_text,
    number_of_changes,
)

from shoal.export.checkpoint.open_checkpoint import open_checkpoint
from shoal.export.checkpoint.tensor_names import wanted_tensors
from shoal.export.config.model_config import ModelConfig

_ALIGNMENT, _BF16, _STRING, _ARRAY = 32, 30, 8, 9
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MANY = 5_000_000
_PARTS = ("m-00001-of-00000.gguf", "m-00001-of-00002.gguf", "m-00002-of-00001.gguf")
_MANY_PARTS = "m-00001-of-99999.gguf"


@dataclass(frozen=True)
class _Key:
    name: str
    kind: int
    value: Any
    item_kind: int = 0  # of an array
    count: int | None = None  # when it is not how many there are

    def to_bytes(self) -> bytes:
        return _text(self.name) + struct.pack("<I", self.kind) + self._value_bytes()

    def _value_bytes(self) -> bytes:
        if self.kind == _ARRAY:
            values = self.value if isinstance(self.value, list) else [self.value]
            count = len(values) if self.count is None else self.count
            head = struct.pack("<IQ", self.item_kind, count & ((1 << 64) - 1))
            return head + b"".join(_scalar(self.item_kind, value) for value in values)
        return _scalar(self.kind, self.value)


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]  # as in the file: the size of a row first
    kind: int
    offset: int

    def to_bytes(self) -> bytes:
        shape = struct.pack(f"<{len(self.shape)}Q", *(n & ((1 << 64) - 1) for n in self.shape))
        head = _text(self.name) + struct.pack("<I", len(self.shape)) + shape
        return head + struct.pack("<IQ", self.kind & 0xFFFFFFFF, self.offset & ((1 << 64) - 1))


class GgufFormat:
    """Files of a small model."""

    def __init__(self, samples: Samples) -> None:
        names = ("config.json", "tokenizer.json")
        config, tokenizer = (json.loads((samples.checkpoint / name).read_bytes()) for name in names)
        metadata = metadata_of(config) | vocabulary_of(tokenizer, "deepseek-v3")
        self._keys = [_key_of(name, value) for name, value in metadata.items()]
        shapes = wanted_tensors(ModelConfig.from_hf(config))
        arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        self._tensors, offset = [], 0
        for name, array in gguf_tensors(config, arrays, True):
            self._tensors.append(_Tensor(name, array.shape[::-1], _BF16, offset))
            offset += -(-array.size * 2 // _ALIGNMENT) * _ALIGNMENT
        self._data_bytes = offset

    def prepare(self, rng: Random, folder: Path) -> Use:
        """See ``FuzzFormat``."""
        keys, tensors, data_bytes = list(self._keys), list(self._tensors), self._data_bytes
        for _ in range(number_of_changes(rng)):
            if rng.random() < 0.6:
                _change_keys(rng, keys)
            else:
                _change_tensors(rng, tensors)
        header = _header(rng, keys, tensors)
        if rng.random() < 0.15:
            header = change_bytes(rng, header)
        if rng.random() < 0.05:
            data_bytes = rng.choice((0, data_bytes - 1, 1 << 29))
        path = folder / (rng.choice(_PARTS) if rng.random() < 0.05 else "model.gguf")
        if rng.random() < 0.01:
            path = folder / _MANY_PARTS
        path.write_bytes(header)
        os.truncate(path, -(-len(header) // _ALIGNMENT) * _ALIGNMENT + data_bytes)
        return lambda: use_checkpoint(path, open_checkpoint(path))


def _header(rng: Random, keys: list[_Key], tensors: list[_Tensor]) -> bytes:
    counts = [len(tensors), len(keys)]
    if rng.random() < 0.05:
        counts[rng.randrange(2)] = rng.choice(INTEGERS) & ((1 << 64) - 1)
    version = rng.choice((2, 3, 3, 3, 3, 3)) if rng.random() < 0.97 else rng.choice((0, 1, 4, 99))
    parts = [b"GGUF", struct.pack("<IQQ", version, *counts)]
    return b"".join([*parts, *(key.to_bytes() for key in keys), *(t.to_bytes() for t in tensors)])


def _change_keys(rng: Random, keys: list[_Key]) -> None:
    place = rng.randrange(len(keys))
    key = keys[place]
    match rng.randrange(8):
        case 0:
            del keys[place]
        case 1:
            keys.insert(place, key)
        case 2:
            keys[place] = replace(key, name=change_text(rng, key.name))
        case 3:
            keys[place] = replace(key, value=keys[rng.randrange(len(keys))].value)
        case 4:
            keys[place] = _of_another_type(rng, key)
        case _:
            keys[place] = _changed_value(rng, key)


def _of_another_type(rng: Random, key: _Key) -> _Key:
    kind = rng.choice((*_FORMS, _STRING, _ARRAY, 13, 99))
    if kind == _ARRAY and rng.random() < 0.02:
        return replace(key, kind=_ARRAY, item_kind=0, value=[0] * _MANY)
    values = (rng.choice(INTEGERS), rng.choice(FLOATS), rng.choice(TEXTS), [1, 2], key.value)
    item_kind = rng.choice((*_FORMS, _STRING, _ARRAY))
    return replace(key, kind=kind, value=rng.choice(values), item_kind=item_kind)


def _changed_value(rng: Random, key: _Key) -> _Key:
    value = key.value
    if key.kind == _ARRAY:
        if rng.random() < 0.1:
            return replace(key, count=rng.choice(INTEGERS))
        values = list(value) if isinstance(value, list) else [value]
        for _ in range(number_of_changes(rng)):
            place = rng.randrange(len(values) + 1)
            if place < len(values) and rng.random() < 0.7:
                values[place] = _changed_scalar(rng, values[place])
            elif rng.random() < 0.5:
                values[place:place] = values[place - 1 : place]
            else:
                del values[place : place + rng.choice((1, 5, 1000))]
        return replace(key, value=values)
    return replace(key, value=_changed_scalar(rng, value))


def _changed_scalar(rng: Random, value: Any) -> Any:
    if isinstance(value, str):
        return change_text(rng, value)
    if isinstance(value, int):
        return change_integer(rng, value)
    return rng.choice((*FLOATS, *INTEGERS))


def _change_tensors(rng: Random, tensors: list[_Tensor]) -> None:
    place, other = rng.randrange(len(tensors)), rng.randrange(len(tensors))
    tensor = tensors[place]
    match rng.randrange(9):
        case 0:
            del tensors[place]
        case 1:
            tensors.insert(other, tensor)
        case 2:
            tensors[place] = replace(tensor, name=change_text(rng, tensor.name))
        case 3:
            tensors[place] = replace(tensor, name=tensors[other].name)
        case 4:
            kinds = (0, 1, 8, 2, 12, 30, 99, (1 << 32) - 1)
            tensors[place] = replace(tensor, kind=rng.choice(kinds))
        case 5:
            changed = rng.choice((tensors[other].offset, change_integer(rng, tensor.offset)))
            tensors[place] = replace(tensor, offset=changed)
        case 6:
            dimensions = rng.choice((0, 1, 4, 5, 9, 100_000))
            tensors[place] = replace(tensor, shape=(rng.choice((0, 1, 1, 2)),) * dimensions)
        case 7 if len(tensor.shape) > 2:
            tensors[place] = replace(tensor, shape=(1, 1, rng.choice((1, 4_000_000, 1 << 40))))
        case _:
            shape = list(tensor.shape)
            axis = rng.randrange(len(shape) or 1)
            shape[axis : axis + 1] = [change_integer(rng, (shape or [1])[axis])]
            tensors[place] = replace(tensor, shape=tuple(shape))


def _key_of(name: str, value: Any) -> _Key:
    if isinstance(value, list):
        return _Key(name, _ARRAY, value, _STRING if isinstance(value[0], str) else 5)
    kinds = ((bool, 7), (int, 4), (float, 6), (str, _STRING))
    return _Key(name, next(kind for type_, kind in kinds if isinstance(value, type_)), value)


def _scalar(kind: int, value: Any) -> bytes:
    """A value as one of this kind, whatever it was."""
    if kind == _STRING:
        return _text(value if isinstance(value, str) else str(value)[:1000])
    form = _FORMS.get(kind, "Q")
    number = value if isinstance(value, int | float) else len(str(value))
    if form in "fd":
        try:
            return struct.pack(f"<{form}", float(number))
        except OverflowError:
            return struct.pack(f"<{form}", float("inf"))
    size = struct.calcsize(form)
    whole = int(number) if abs(number) < float("inf") else 1
    return (whole & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded


def make(samples: Samples) -> GgufFormat:
    """The format, from its samples."""
    return GgufFormat(samples)
