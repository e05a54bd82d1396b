"""Saved contexts: header and arrays changed, sealed again or not, then continued."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random

import numpy as np
from tests.fuzz.fuzz_format import Samples, Use, require
from tests.fuzz.json_mutations import change_json, change_json_text, json_bytes
from tests.fuzz.mutations import change_bytes, number_of_changes

from shoal.runtime.dialogue.saved_dialogue import open_dialogue
from shoal.runtime.opening import open_bundle

_OPTIONS = {"max_new_tokens": 1}
_VALUES = (float("nan"), float("inf"), -1.0, 1e38, 0.0)


class ContextFormat:
    """Sessions of ``shoal run``."""

    def __init__(self, samples: Samples) -> None:
        self._model = open_bundle(samples.bundle, threads=1, max_context=64)
        self._sound = []
        for draft in (0, 1):
            path = samples.work / f"context{draft}"
            path.unlink(missing_ok=True)
            options = {**_OPTIONS, "draft": draft}
            with open_dialogue(self._model, options, path, chat=False, system=None) as dialogue:
                dialogue.answer("It is a truth", lambda piece: None)
            self._sound.append(path.read_bytes())

    def prepare(self, rng: Random, folder: Path) -> Use:
        """See ``FuzzFormat``."""
        sound = rng.choice(self._sound)
        is_sealed = rng.random() < 0.85
        length = int.from_bytes(sound[8:16], "little")
        header, arrays = json.loads(sound[16 : 16 + length]), sound[16 + length : -32]
        text = sound[16 : 16 + length]
        if rng.random() < 0.6:
            text = change_json_text(rng, json_bytes(_changed_header(rng, header)))
        if rng.random() < 0.5:
            arrays = _changed_arrays(rng, arrays)
        content = sound[:8] + len(text).to_bytes(8, "little") + text + arrays
        if rng.random() < 0.1:
            content = change_bytes(rng, content)
        content += hashlib.sha256(content).digest() if is_sealed else sound[-32:]
        path = folder / "session"
        path.write_bytes(content)
        may_open = is_sealed or content == sound
        return lambda: self._use(path, may_open)

    def _use(self, path: Path, may_open: bool) -> None:
        options = dict(_OPTIONS)
        with open_dialogue(self._model, options, path, chat=False, system=None) as dialogue:
            require(may_open, "a context whose checksum is wrong")
            dialogue.answer(" again", lambda piece: None)


def _changed_header(rng: Random, header: dict[str, object]) -> object:
    key = rng.choice(("arrays", "arrays", "note", "note", *header))
    if rng.random() < 0.1:
        return change_json(rng, header)
    return header | {key: change_json(rng, header[key])}


def _changed_arrays(rng: Random, arrays: bytes) -> bytes:
    for _ in range(number_of_changes(rng)):
        if rng.random() < 0.5:
            arrays = change_bytes(rng, arrays)
            continue
        values = np.frombuffer(arrays[: len(arrays) // 4 * 4], np.float32).copy()
        begin = rng.randrange(len(values) + 1)
        values[begin : begin + rng.choice((1, 100, len(values)))] = rng.choice(_VALUES)
        arrays = values.tobytes() + arrays[len(arrays) // 4 * 4 :]
    return arrays


def make(samples: Samples) -> ContextFormat:
    """The format, from its samples."""
    return ContextFormat(samples)
