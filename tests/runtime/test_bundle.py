from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.graphs.errors import BundleError, RuntimeFailure
from shoal.runtime.bundle import Bundle


def test_a_complete_folder_opens_and_verifies(fake_bundle):
    bundle = Bundle.open(fake_bundle.folder)
    calls = []
    bundle.verify_files(lambda *call: calls.append(call))
    total = sum(len(content) for content in fake_bundle.contents.values())
    assert calls[-1][0] == total
    assert {call[1] for call in calls} == {total}
    assert bundle.graph_path("head") == fake_bundle.folder.resolve() / "head.onnx"


@pytest.mark.parametrize("name", ["decoder.onnx", "head.onnx", "tokenizer_config.json"])
def test_a_changed_byte_outside_the_weights_is_found_on_opening(fake_bundle, name):
    path = fake_bundle.folder / name
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(BundleError, match=f"{name}: sha256 does not match"):
        Bundle.open(fake_bundle.folder)


def test_a_changed_byte_of_the_weights_is_found_by_verify(fake_bundle):
    content = bytearray(fake_bundle.contents["weights.bin"])
    content[4000] ^= 0x10
    (fake_bundle.folder / "weights.bin").write_bytes(content)
    bundle = Bundle.open(fake_bundle.folder)
    with pytest.raises(BundleError, match=r"weights\.bin: sha256 does not match"):
        bundle.verify_files()


@pytest.mark.parametrize("name", ["decoder.onnx", "weights.bin", "tokenizer_config.json"])
def test_a_missing_or_truncated_file_is_named(fake_bundle, name):
    path = fake_bundle.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=f"{name}: expected .* bytes, found"):
        Bundle.open(fake_bundle.folder)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name}: the file is missing"):
        Bundle.open(fake_bundle.folder)


def test_a_path_out_of_the_folder_is_refused_before_it_is_opened(fake_bundle, tmp_path):
    content = fake_bundle.content()
    (tmp_path / "weights.bin").write_bytes(b"")
    content["files"]["../weights.bin"] = content["files"]["weights.bin"]
    fake_bundle.write(content)
    with pytest.raises(BundleError, match="must be named plainly"):
        Bundle.open(fake_bundle.folder)


@pytest.mark.parametrize("name", ["weights.bin", "head.onnx", "manifest.json"])
def test_a_link_out_of_the_folder_is_refused(fake_bundle, tmp_path, name):
    outside = tmp_path / "outside"
    (fake_bundle.folder / name).rename(outside)
    (fake_bundle.folder / name).symlink_to(outside)
    with pytest.raises(BundleError, match=f"{name}: leads outside the bundle"):
        Bundle.open(fake_bundle.folder)


def test_a_link_within_the_folder_and_a_link_to_the_folder_are_accepted(fake_bundle, tmp_path):
    (fake_bundle.folder / "head.onnx").rename(fake_bundle.folder / "kept.onnx")
    (fake_bundle.folder / "head.onnx").symlink_to("kept.onnx")
    (tmp_path / "link").symlink_to(fake_bundle.folder)
    assert Bundle.open(tmp_path / "link").folder == fake_bundle.folder.resolve()


def test_a_loop_of_links_and_a_pipe_are_refused_without_waiting(fake_bundle):
    (fake_bundle.folder / "head.onnx").unlink()
    (fake_bundle.folder / "head.onnx").symlink_to("head.onnx")
    with pytest.raises(BundleError, match=r"head\.onnx"):
        Bundle.open(fake_bundle.folder)
    (fake_bundle.folder / "manifest.json").unlink()
    os.mkfifo(fake_bundle.folder / "manifest.json")
    with pytest.raises(BundleError, match="expected a regular file"):
        Bundle.open(fake_bundle.folder)


def test_what_is_no_bundle_is_told_what_it_is(tmp_path):
    with pytest.raises(BundleError, match="found nothing; make one with: shoal export"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="found a file"):
        Bundle.open(tmp_path / "file")
    with pytest.raises(BundleError, match="no finished bundle"):
        Bundle.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BundleError, match="found a checkpoint; export it first"):
        Bundle.open(tmp_path)


def test_a_big_endian_machine_is_refused(fake_bundle, monkeypatch):
    monkeypatch.setattr("sys.byteorder", "big")
    with pytest.raises(RuntimeFailure, match="big-endian"):
        Bundle.open(fake_bundle.folder)


def test_a_file_that_may_not_be_read_is_one_line(fake_bundle, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BundleError, match=r"cannot be read .*Permission denied"):
        Bundle.open(fake_bundle.folder)


def test_reading_a_bundle_needs_no_onnxruntime(fake_bundle):
    code = (
        "import sys; import shoal.runtime; from shoal.runtime.bundle import Bundle;"
        f"Bundle.open({str(fake_bundle.folder)!r}); print('onnxruntime' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.strip() == b"False"
