from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime import open_bundle
from shoal.runtime.drafting.drafts import DRAFTER

IDS = list(range(40, 640, 11))


@pytest.fixture(scope="module")
def model(int8_bundle):
    return open_bundle(int8_bundle, threads=1)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A file with a context of IDS, the MTP state included."""
    path = tmp_path_factory.mktemp("saved") / "a.ctx"
    context = model.new_context()
    drafter = model.drafts.start(context)
    context.prefill(IDS)
    drafter.propose(context.position, 7, 2)
    context.save(path, {"title": "caf\u00e9"})
    return path


def test_what_follows_has_the_same_bits_as_without_the_interruption(model, tmp_path):
    context = model.new_context()
    drafter = model.drafts.start(context)
    context.prefill(IDS)
    drafter.propose(context.position, 7, 2)
    for token in (7, 8, 9):
        context.decode(token)
    context.save(tmp_path / "a.ctx", {"kept": [1, None]})
    restored, note = model.load_context_and_note(tmp_path / "a.ctx")
    assert note == {"kept": [1, None]}
    assert restored.tokens == context.tokens
    np.testing.assert_array_equal(restored.last_hidden, context.last_hidden)
    for token in (10, 11):
        drafts = [
            model.drafts.start(one).propose(one.position, token, 3) for one in (context, restored)
        ]
        assert drafts[0] == drafts[1] != []
        np.testing.assert_array_equal(restored.decode(token), context.decode(token))
    np.testing.assert_equal(restored.layer_state.rows(), context.layer_state.rows())
    np.testing.assert_equal(model.drafts.start(restored).cache.rows(), drafter.cache.rows())


def test_a_context_without_drafts_and_an_empty_one_can_be_kept(model, tmp_path):
    context = model.new_context()
    context.save(tmp_path / "empty.ctx")
    restored = model.load_context(tmp_path / "empty.ctx")
    assert (restored.position, restored.observer(DRAFTER)) == (0, None)
    np.testing.assert_array_equal(restored.prefill(IDS), context.prefill(IDS))


def test_saving_replaces_the_file_and_leaves_nothing_else(model, saved, tmp_path):
    path = tmp_path / "a.ctx"
    path.write_text("old")
    model.load_context(saved).save(path)
    assert model.load_context(path).tokens == tuple(IDS)
    assert os.listdir(tmp_path) == ["a.ctx"]


def test_a_context_of_another_bundle_is_refused(saved, fp32_bundle):
    other = open_bundle(fp32_bundle, threads=1)
    with pytest.raises(InputError, match="it belongs to another bundle"):
        other.load_context(saved)


def rewrite(saved, path, change):
    """The file with another header, sealed again."""
    content = saved.read_bytes()
    length = int.from_bytes(content[8:16], "little")
    header = json.loads(content[16 : 16 + length])
    change(header)
    encoded = json.dumps(header).encode()
    body = content[:8] + len(encoded).to_bytes(8, "little") + encoded
    body += content[16 + length : -32]
    path.write_bytes(body + hashlib.sha256(body).digest())


def array(shape):
    """The entry of an array that takes no bytes of the file."""
    return {"name": "more", "dtype": "uint8", "shape": shape}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda h: h.update(format_version=2), "format_version 1, found '2'"),
        (lambda h: h.update(cache="int8"), "cache float32, found 'int8'"),
        (lambda h: h.update(bundle=None), "found 'None'"),
        (lambda h: h.update(note=3), "damaged"),
        (lambda h: h.pop("arrays"), "damaged"),
        (lambda h: h["arrays"].reverse(), "damaged"),
        (lambda h: h["arrays"][0].update(name="mtp.x"), "damaged"),
        (lambda h: h["arrays"][0].update(dtype="object"), "damaged"),
        (lambda h: h["arrays"][0].update(shape=[-1, -55]), "damaged"),
        (lambda h: h["arrays"][2].update(shape=[1 << 39, 1 << 39]), "damaged"),
        (lambda h: h["arrays"][2].update(shape=[*h["arrays"][2]["shape"], *[1] * 69]), "damaged"),
        (lambda h: h["arrays"][2].update(shape=[1 << 39] * 1_000_000), "damaged"),
        (lambda h: h["arrays"][2].update(shape=[10**4000]), "damaged"),
        (lambda h: h["arrays"].append(array([0, 1 << 39, 1 << 39])), "damaged"),
        (lambda h: h["arrays"].append(array([0] * 71)), "damaged"),
        (lambda h: h["arrays"].append(array("00")), "damaged"),
        (lambda h: h["arrays"][2].update(shape=list(reversed(h["arrays"][2]["shape"]))), "damaged"),
    ],
)
def test_headers_that_do_not_fit_are_refused(model, saved, tmp_path, change, expected):
    rewrite(saved, tmp_path / "a.ctx", change)
    with pytest.raises(InputError, match=expected):
        model.load_context(tmp_path / "a.ctx")


def test_tokens_outside_the_vocabulary_are_refused(model, saved, tmp_path):
    context = model.load_context(saved)
    context._tokens[3] = 4096
    context.save(tmp_path / "a.ctx")
    with pytest.raises(InputError, match="damaged"):
        model.load_context(tmp_path / "a.ctx")


@pytest.mark.parametrize(
    "change",
    [
        lambda drafter: drafter._rows.__setitem__(3, (-1, 5)),
        lambda drafter: drafter._rows.__setitem__(3, (3, 4096)),
        lambda drafter: drafter._rows.__setitem__(3, (1 << 40, 5)),
        lambda drafter: drafter._rows.pop(),
        lambda drafter: setattr(drafter, "_recent_TD", drafter._recent_TD[:, 1:]),
        lambda drafter: setattr(drafter, "state", lambda: {"rows": np.zeros((0, 2), np.int64)}),
    ],
)
def test_a_state_that_no_drafter_can_have_is_refused(model, saved, tmp_path, change):
    context = model.load_context(saved)
    change(model.drafts.start(context))
    context.save(tmp_path / "a.ctx")
    with pytest.raises(InputError, match="damaged"):
        model.load_context(tmp_path / "a.ctx")


def test_a_context_with_drafts_that_is_too_long_is_refused_as_such(model, saved, int8_bundle):
    short = open_bundle(int8_bundle, threads=1, max_context=20)
    with pytest.raises(InputError, match="55 tokens are more than the model's 20"):
        short.load_context(saved)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_changed_byte_and_any_other_length_is_refused(model, saved, data):
    content = bytearray(saved.read_bytes())
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path = saved.with_name("changed.ctx")
    path.write_bytes(content)
    with pytest.raises(InputError):
        model.load_context(path)


def test_what_is_no_context_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        model.load_context(tmp_path / "none.ctx")
    with pytest.raises(InputError, match="cannot be read"):
        model.load_context(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="another kind of file"):
        model.load_context(tmp_path / "text")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(model, saved, tmp_path, monkeypatch):
    path = tmp_path / "a.ctx"
    path.write_bytes(saved.read_bytes())

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RuntimeFailure, match=r"could not be written \(No space left on device\)"):
        model.load_context(path).save(path)
    assert path.read_bytes() == saved.read_bytes()
    assert os.listdir(tmp_path) == ["a.ctx"]


def test_a_folder_that_is_not_there_is_one_line(model, tmp_path):
    with pytest.raises(RuntimeFailure, match="could not be written"):
        model.new_context().save(tmp_path / "none" / "a.ctx")


KILLED_WHILE_SAVING = """
import os, pathlib, signal, sys
import numpy as np
from shoal.runtime.engine import context_file

def die(descriptor):
    os.kill(os.getpid(), signal.SIGKILL)

context_file.os.fsync = die
arrays = {"tokens": np.arange(1000)}
context_file.write_context_file(
    pathlib.Path(sys.argv[1]), bundle="b", cache_type="int8", arrays=arrays, note={}
)
"""


def test_a_process_killed_while_saving_leaves_the_old_file(saved, tmp_path):
    path = tmp_path / "a.ctx"
    path.write_bytes(saved.read_bytes())
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == saved.read_bytes()
    assert not [name for name in os.listdir(tmp_path) if Path(name).suffix not in (".ctx", ".tmp")]
