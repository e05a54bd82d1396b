"""Stored references: header, records and columns changed, sealed again or not, then compared."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from random import Random

import numpy as np
from tests.fuzz.fuzz_format import Samples, Use, require
from tests.fuzz.json_mutations import change_json, change_json_text, json_bytes
from tests.fuzz.mutations import change_bytes, number_of_changes

from shoal.graphs.fidelity import shipped_text
from shoal.runtime.evaluation.evaluate import evaluate
from shoal.runtime.evaluation.metrics import TOP, compare, log_softmax
from shoal.runtime.evaluation.stored_reference import StoredReference
from shoal.runtime.opening import open_bundle

_WINDOW, _TEXT_LENGTH = 40, 400
_ROUNDING = 1e-6  # nats by which rounding may make a divergence negative, a probability above 1
_BOMB = zlib.compress(bytes(200 << 20), 1)
_WORDS = (0, 1, 0x7FC00000, 0x7F800000, 0xBF800000, 0x40000000, 1 << 31, (1 << 32) - 1)


class ReferenceFormat:
    """References of the sample bundle."""

    def __init__(self, samples: Samples) -> None:
        text = samples.work / "reference.txt"
        text.write_text(shipped_text()[:_TEXT_LENGTH], encoding="utf-8")
        path = samples.work / "reference"
        path.unlink(missing_ok=True)
        model = open_bundle(samples.bundle, threads=1)
        evaluate([model], texts=[text], window=_WINDOW, save_reference=path, generate=3)
        self._sound = path.read_bytes()
        header = StoredReference(path).header
        self._sizes = (
            header.windows,
            header.vocab_size,
            header.moe_layers,
            header.num_experts_per_tok,
        )
        random = np.random.default_rng(0)
        logits = random.normal(size=(max(header.windows), header.vocab_size))
        self._log_probs = log_softmax(logits)

    def prepare(self, rng: Random, folder: Path) -> Use:
        """See ``FuzzFormat``."""
        is_sealed = rng.random() < 0.9
        length = int.from_bytes(self._sound[8:16], "little")
        text, rest = self._sound[16 : 16 + length], self._sound[16 + length : -32]
        if rng.random() < 0.4:
            header = json.loads(text)
            key = rng.choice(list(header))
            text = json_bytes(header | {key: change_json(rng, header[key])})
            text = change_json_text(rng, text)
        else:
            rest = _changed_records(rng, rest)
        content = self._sound[:8] + len(text).to_bytes(8, "little") + text + rest
        if rng.random() < 0.1:
            content = change_bytes(rng, content)
        content += hashlib.sha256(content).digest() if is_sealed else self._sound[-32:]
        path = folder / "a.ref"
        path.write_bytes(content)
        may_open = is_sealed or content == self._sound
        return lambda: self._use(path, may_open)

    def _use(self, path: Path, may_open: bool) -> None:
        stored = StoredReference(path)
        require(may_open, "a reference whose checksum is wrong")
        stored.require_sizes(*self._sizes)
        for window in stored.windows():
            count = len(window.next_log_probs)
            found = compare(window.rows(slice(0, count)), self._log_probs[:count])
            require(bool(np.isfinite(found.kl).all()), "a divergence that is no number")
            require(bool((found.kl > -_ROUNDING).all()), "a divergence below zero")
            require(bool((found.shared_top <= 1).all()), f"more than {TOP} shared tokens")
            require(bool((window.next_log_probs <= _ROUNDING).all()), "a probability above one")
            require(bool(np.isfinite(window.next_log_probs).all()), "a probability of zero")


def _changed_records(rng: Random, rest: bytes) -> bytes:
    records = []
    while rest:
        size = int.from_bytes(rest[:4], "little")
        records.append(rest[: 4 + size])
        rest = rest[4 + size :]
    changed: dict[int, bytes] = {}
    for _ in range(number_of_changes(rng)):
        place = rng.randrange(len(records))
        content = changed.get(place) or zlib.decompress(records[place][4:])
        changed[place] = _changed_record(rng, content)
    for place, content in changed.items():
        records[place] = _packed(rng, content)
    if rng.random() < 0.15:
        place = rng.randrange(len(records))
        if rng.random() < 0.5:
            records.insert(rng.randrange(len(records)), records[place])
        else:
            del records[place]
    return b"".join(records)


def _changed_record(rng: Random, record: bytes) -> bytes:
    if rng.random() < 0.3:
        return change_bytes(rng, record)
    words = np.frombuffer(record[: len(record) // 4 * 4], "<u4").copy()
    begin, count = rng.randrange(len(words)), rng.choice((1, 1, _WINDOW, 500))
    if rng.random() < 0.5:
        begin = rng.randrange(min(len(words), _WINDOW * (3 + TOP)))  # where the columns are
    words[begin : begin + count] = rng.choice(_WORDS)
    return words.tobytes() + record[len(record) // 4 * 4 :]


def _packed(rng: Random, record: bytes) -> bytes:
    packed = _BOMB if rng.random() < 0.02 else zlib.compress(record, 1)
    length = len(packed)
    if rng.random() < 0.03:
        length = rng.choice((0, length - 1, length + 1, (1 << 32) - 1))
    if rng.random() < 0.03:
        packed = change_bytes(rng, packed)
    return length.to_bytes(4, "little") + packed


def make(samples: Samples) -> ReferenceFormat:
    """The format, from its samples."""
    return ReferenceFormat(samples)
