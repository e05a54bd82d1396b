"""Texts in all their forms, cut into windows."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.graphs.errors import InputError
from shoal.graphs.fidelity import shipped_text
from shoal.runtime.evaluation import texts
from shoal.runtime.evaluation.texts import read_documents
from shoal.runtime.evaluation.windows import cut_windows
from shoal.runtime.text.tokenizer import Tokenizer, load_tokenizer

WORDS = "One of two is \u00fcber-long, \u6df1\u3044 and \U0001f41f.\nAnother line.\n\n"


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return load_tokenizer(tiny_checkpoint)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_shipped_text_is_taken_when_none_is_given(tokenizer: Tokenizer) -> None:
    found = cut_windows([], tokenizer, 512, None)
    ids = tokenizer.encode(shipped_text(), add_special_tokens=False)
    assert found.texts == ("shipped",)
    assert [token for window in found.windows for token in window.ids[1:]] == ids
    assert {len(window.ids) for window in found.windows[:-1]} == {512}
    assert {int(window.ids[0]) for window in found.windows} == set(tokenizer.begin_ids)
    assert found.num_tokens == len(ids) + len(found.windows)


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    documents=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=4),
    length=st.integers(2, 9),
)
@pytest.mark.filterwarnings("ignore:.*fewer than the window")
def test_windows_hold_every_token_and_every_byte_of_each_document(
    documents: list[str], length: int, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    found = cut_windows([written(tmp_path / "a.jsonl", lines)], tokenizer, length, None)
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in documents]
    assert sum(window.predicted_bytes for window in found.windows) == sum(
        len(text.encode()) for text in documents
    )
    windows = iter(found.windows)
    for ids in encoded:
        step = length - 1
        for start in range(0, len(ids), step):
            assert next(windows).ids.tolist() == [0, *ids[start : start + step]]
    assert next(windows, None) is None


def test_plain_and_compressed_files_are_the_same_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = WORDS * 40
    line = json.dumps({"source": "x", "text": text}) + "\n"
    paths = [
        written(tmp_path / "a.txt", text),
        written(tmp_path / "b.txt.xz", lzma.compress(text.encode())),
        written(tmp_path / "c.jsonl", line + "\n"),
        written(tmp_path / "d.jsonl.xz", lzma.compress(line.encode())),
        written(tmp_path / "e.jsonl.gz", gzip.compress(line.encode())),
        written(tmp_path / "f.txt", b"\xef\xbb\xbf" + text.encode()),
        written(tmp_path / "g.jsonl", b"\xef\xbb\xbf" + line.encode()),
        written(tmp_path / "h.txt.gz", gzip.compress(b"\xef\xbb\xbf" + text.encode())),
    ]
    assert len({cut_windows([path], tokenizer, 32, None).sha256 for path in paths}) == 1
    both = cut_windows(paths[:2], tokenizer, 32, None)
    assert both.texts == ("a.txt", "b.txt.xz")
    assert len(both.windows) == 2 * len(cut_windows(paths[:1], tokenizer, 32, None).windows)


def test_long_files_are_read_in_pieces_that_end_with_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "_PIECE_CHARACTERS", 50)
    path = written(tmp_path / "a.txt", WORDS * 9)
    pieces = [piece for document in read_documents(path) for piece in document]
    assert "".join(pieces) == WORDS * 9
    assert len(pieces) > 3
    assert all(piece.endswith("\n") for piece in pieces)


def test_the_number_of_tokens_can_be_limited(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", WORDS * 40)
    found = cut_windows([path, path], tokenizer, 32, 100)
    assert sum(len(window.ids) - 1 for window in found.windows) == 100
    assert [len(window.ids) for window in found.windows] == [32, 32, 32, 8]
    whole = cut_windows([path], tokenizer, 32, None)
    assert found.sha256 != whole.sha256
    assert found.windows[0].ids.tolist() == whole.windows[0].ids.tolist()


def test_a_text_shorter_than_a_window_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", WORDS)
    with pytest.warns(UserWarning, match=r"a\.txt: at most \d+ tokens in a row, fewer than the"):
        found = cut_windows([path], tokenizer, 512, None)
    assert len(found.windows) == 1


BAD = {
    "a.txt": (b"caf\xe9", "expected UTF-8 text, found other bytes"),
    "b.txt": (b"", "expected text of at least 2 tokens, found fewer"),
    "c.jsonl": (b'{"text": "one two three"}\n{"txt": 1}\n', 'c.jsonl, line 2: expected a "text"'),
    "d.jsonl": (b"not json\n", "d.jsonl, line 1: expected a JSON object, found other text"),
    "e.jsonl": (b"[1]\n", "e.jsonl, line 1: expected a JSON object, found list"),
    "f.txt.xz": (lzma.compress(b"text " * 999)[:40], "the text cannot be read"),
    "g.txt.xz": (b"no xz at all", "the text cannot be read"),
    "k.jsonl": (b'{"text": "' + b"x" * (16 << 20), "expected a line of fewer than 16777216"),
    "h.jsonl": (b"\n\n", "expected text of at least 2 tokens"),
}


@pytest.mark.parametrize("name", [*BAD, "nowhere.txt"])
def test_a_bad_text_is_refused_in_one_line(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    content, expected = BAD.get(name, (None, "No such file"))
    if content is not None:
        written(tmp_path / name, content)
    with pytest.raises(InputError, match=re.escape(expected)) as error:
        cut_windows([tmp_path / name], tokenizer, 64, None)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)
