"""References from anywhere: sealed with a right checksum, wrong inside."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.graphs.errors import InputError
from shoal.runtime import Model, evaluate
from shoal.runtime.evaluation.results import Evaluation
from shoal.runtime.evaluation.stored_reference import StoredReference, StoredWindow

WINDOW = 64
COLUMNS = ("counts", "rest", "next", "best", "experts", "steps", "codes")


@dataclass
class Taken:
    """A reference taken apart."""

    header: dict[str, Any]
    windows: list[bytes]  # as zlib streams unpack them

    @classmethod
    def apart(cls, content: bytes) -> Taken:
        length = struct.unpack("<Q", content[8:16])[0]
        header, rest, windows = json.loads(content[16 : 16 + length]), content[16 + length :], []
        while len(rest) > 32:
            size = struct.unpack("<I", rest[:4])[0]
            windows.append(zlib.decompress(rest[4 : 4 + size]))
            rest = rest[4 + size :]
        return cls(header, windows)

    def sealed(self) -> bytes:
        head = self.header if isinstance(self.header, bytes) else json.dumps(self.header).encode()
        content = b"shoalref" + struct.pack("<Q", len(head)) + head
        for window in self.windows:
            record = zlib.compress(window)
            content += struct.pack("<I", len(record)) + record
        return content + hashlib.sha256(content).digest()

    def columns(self, index: int) -> dict[str, np.ndarray]:
        """Views of a window's arrays; change them, then ``put``."""
        t, m = self.header["windows"][index], len(self.header["moe_layers"])
        k, data = self.header["num_experts_per_tok"], bytearray(self.windows[index])
        shapes: list[tuple[str, int]] = [("<u4", t), ("<f4", t), ("<f4", t)]
        shapes += [("<u4", 5 * t), ("<u2", m * t * k)]
        found, offset = {}, 0
        known = int(np.frombuffer(data, "<u4", t).sum())
        for name, (dtype, count) in zip(
            COLUMNS, [*shapes, ("<u4", known), ("<u2", known)], strict=True
        ):
            found[name] = np.frombuffer(data, dtype, count, offset)
            offset += found[name].nbytes
        return found

    def put(self, index: int, columns: dict[str, np.ndarray]) -> None:
        self.windows[index] = b"".join(columns[name].tobytes() for name in COLUMNS)


@pytest.fixture(scope="module")
def stored(float_model: Model, text: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("reference") / "prose.ref"
    evaluate([float_model], texts=[text], window=WINDOW, save_reference=path, generate=3)
    return path.read_bytes()


@pytest.fixture
def judge(stored: bytes, int8_model: Model, text: Path, tmp_path: Path) -> Callable[[bytes], Any]:
    """Reads a reference of this content as an evaluation does."""
    header = Taken.apart(stored).header
    sizes = [header[key] for key in ("windows", "vocab_size", "moe_layers", "num_experts_per_tok")]

    def windows(content: bytes) -> list[StoredWindow]:
        path = tmp_path / "any.ref"
        path.write_bytes(content)
        reference = StoredReference(path)
        reference.require_sizes(*sizes)
        return list(reference.windows())

    return windows


@pytest.fixture
def evaluated(int8_model: Model, text: Path, tmp_path: Path) -> Callable[[bytes], Evaluation]:
    """Evaluates against a reference of this content."""

    def evaluation(content: bytes) -> Evaluation:
        path = tmp_path / "any.ref"
        path.write_bytes(content)
        return evaluate([int8_model], texts=[text], window=WINDOW, reference=path, generate=3)

    return evaluation


def test_taking_apart_and_sealing_gives_a_reference_again(
    stored: bytes, evaluated: Callable[[bytes], Evaluation]
) -> None:
    taken = Taken.apart(stored)
    taken.put(0, taken.columns(0))
    found, expected = evaluated(taken.sealed()), evaluated(stored)
    assert found.models[0].agreement == expected.models[0].agreement


def _column_changes() -> Iterator[Any]:
    for name, value in [
        *(("rest", value) for value in (np.nan, 2.0, -0.1, np.inf, 0.5)),
        *(("next", value) for value in (np.nan, np.inf, 1.0, -np.inf, -1e30)),
        *(("best", value) for value in (1 << 31, 1 << 20)),
        ("counts", 0),
        ("counts", (1 << 32) - 1),
        ("steps", 1 << 31),
        ("codes", 0),
        ("codes", 65535),
    ]:
        yield pytest.param(name, value, id=f"{name}={value}")


@pytest.mark.parametrize(("name", "value"), list(_column_changes()))
@pytest.mark.parametrize("everywhere", [False, True])
def test_values_that_no_model_predicts_are_refused(
    name: str,
    value: float,
    everywhere: bool,
    stored: bytes,
    judge: Callable[[bytes], Any],
) -> None:
    taken = Taken.apart(stored)
    columns = {key: column.copy() for key, column in taken.columns(1).items()}
    columns[name][slice(None) if everywhere else 3] = value
    if name == "codes" and not everywhere:
        columns[name][: columns["counts"][0]] = value  # a whole position
    taken.put(1, columns)
    with pytest.raises(InputError, match=r"any\.ref: the reference is damaged"):
        judge(taken.sealed())


def test_the_same_expert_or_token_twice_is_refused(
    stored: bytes, judge: Callable[[bytes], Any]
) -> None:
    for name in ("experts", "best"):
        taken = Taken.apart(stored)
        columns = {key: column.copy() for key, column in taken.columns(0).items()}
        columns[name][1] = columns[name][0]
        taken.put(0, columns)
        with pytest.raises(InputError, match="damaged"):
            judge(taken.sealed())


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.header.update(windows=t.header["windows"][:-1]),
        lambda t: t.header.update(windows=[*t.header["windows"], 64]),
        lambda t: t.header.update(windows=[1 << 23] * 7),
        lambda t: t.header.update(windows=[64.0]),
        lambda t: t.header.update(windows=[True] * 7),
        lambda t: t.header.update(windows="64"),
        lambda t: t.header.update(format_version=True),
        lambda t: t.header.update(vocab_size=1 << 24),
        lambda t: t.header.update(vocab_size=None),
        lambda t: t.header.update(moe_layers=[0] * 1000),
        lambda t: t.header.update(moe_layers={"0": 1}),
        lambda t: t.header.update(num_experts_per_tok=1 << 15),
        lambda t: t.header.update(num_experts_per_tok=-1),
        lambda t: t.header.update(model=[]),
        lambda t: t.header.update(model={"sha256": 1, "name": "x", "weights": "fp32"}),
        lambda t: t.header["model"].update(name="x" * 5000),
        lambda t: t.header.update(tokenizer="0" * 63),
        lambda t: t.header.update(text={"sha256": t.header["text"]["sha256"], "names": [1]}),
        lambda t: t.header.update(continuations=[[-1, 0, 0]]),
        lambda t: t.header.update(continuations=[3]),
        lambda t: t.header.update(extra=1),
        lambda t: t.header.pop("text"),
        lambda t: setattr(t, "header", [1]),
        lambda t: setattr(t, "header", b"[" * 100_000),
        lambda t: setattr(t, "header", b"{" + b'"a":1' * 10 + b"}"),
        lambda t: t.windows.pop(),
        lambda t: t.windows.append(t.windows[-1]),
        lambda t: t.windows.__setitem__(2, t.windows[2] + b"\0" * 6),
        lambda t: t.windows.__setitem__(2, t.windows[2][:-1]),
        lambda t: t.windows.__setitem__(2, b""),
        lambda t: t.windows.__setitem__(2, bytes(200_000_000)),
    ],
)
def test_a_header_or_window_that_was_not_written_is_refused(
    change: Callable[[Taken], None], stored: bytes, judge: Callable[[bytes], Any]
) -> None:
    taken = Taken.apart(stored)
    change(taken)
    with pytest.raises(InputError, match=r"any\.ref: (the reference is damaged|expected)"):
        judge(taken.sealed())


@given(data=st.data())
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_sealed_change_is_refused_or_harmless(
    stored: bytes, judge: Callable[[bytes], Any], data: st.DataObject
) -> None:
    taken = Taken.apart(stored)
    index = data.draw(st.integers(0, len(taken.windows) - 1))
    window = bytearray(taken.windows[index])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(window) - 1))
        window[place] ^= data.draw(st.integers(1, 255))
    taken.windows[index] = bytes(window)
    with suppress(InputError):  # anything else would be a fault
        for found in judge(taken.sealed()):
            mass = np.bincount(
                np.repeat(np.arange(len(found.rest)), np.diff(found.starts)),
                np.exp(found.log_probs),
            )
            np.testing.assert_allclose(mass + found.rest, 1, atol=1e-9)
            assert np.isfinite(found.next_log_probs).all()


@pytest.mark.parametrize("name", ["rest", "steps"])
def test_an_evaluation_ends_in_one_line(
    name: str, stored: bytes, evaluated: Callable[[bytes], Evaluation]
) -> None:
    taken = Taken.apart(stored)
    columns = {key: column.copy() for key, column in taken.columns(1).items()}
    columns[name][3] = 2
    columns[name][4] = 0
    taken.put(1, columns)
    with pytest.raises(InputError, match=r"any\.ref: the reference is damaged"):
        evaluated(taken.sealed())
    taken = Taken.apart(stored)
    taken.windows.append(taken.windows[-1])
    with pytest.raises(InputError, match=r"any\.ref: the reference is damaged"):
        evaluated(taken.sealed())


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"cannot be read \(expected a regular file\)"):
        StoredReference(tmp_path / "pipe")
