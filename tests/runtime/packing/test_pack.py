"""Packs: what goes in comes out, and nothing else does."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.conftest import FakeBundle

from shoal.graphs.errors import BundleError, InputError, RuntimeFailure
from shoal.runtime.bundle import Bundle
from shoal.runtime.commands.cli import main
from shoal.runtime.packing.pack import write_pack
from shoal.runtime.packing.pack_format import Index, Part, end, header, padding
from shoal.runtime.packing.unpack import unpack

LONG_NAME = "a_wheel_of_a_name_longer_than_a_tar_header_has_room_for-1.2.3-cp311-cp311-" + (
    "manylinux_2_17_aarch64.manylinux2014_aarch64.whl"
)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / LONG_NAME
    path.write_bytes(b"wheel" * 1000)
    return path


@pytest.fixture
def pack(fake_bundle: FakeBundle, wheel: Path, tmp_path: Path) -> Path:
    write_pack(Bundle.open(fake_bundle.folder), tmp_path / "a.pack", [wheel])
    return tmp_path / "a.pack"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def leftovers(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


def make_archive(parts: dict[str, bytes]) -> bytes:
    """A pack of any parts, sealed as the writer would."""
    index = Index(
        parts=tuple(
            Part(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in parts.items()
        )
    )
    archive = b""
    for name, content in {"pack.json": index.to_bytes(), **parts}.items():
        archive += header(name, len(content)) + content + padding(len(content))
    return archive + end()


def test_a_bundle_comes_out_as_it_went_in(
    pack: Path, fake_bundle: FakeBundle, tmp_path: Path
) -> None:
    bundle = unpack(pack, tmp_path / "out")
    assert bundle.folder == tmp_path / "out"
    assert contents(tmp_path / "out") == contents(fake_bundle.folder)
    assert leftovers(tmp_path) == []


def test_the_same_bundle_gives_the_same_pack(
    pack: Path, fake_bundle: FakeBundle, wheel: Path, tmp_path: Path
) -> None:
    os.utime(fake_bundle.folder / "weights.bin", (1, 1))
    write_pack(Bundle.open(fake_bundle.folder), tmp_path / "b.pack", [wheel])
    assert (tmp_path / "b.pack").read_bytes() == pack.read_bytes()


def test_tar_programs_read_it(
    pack: Path, fake_bundle: FakeBundle, wheel: Path, tmp_path: Path
) -> None:
    (tmp_path / "by-tar").mkdir()
    subprocess.run(["tar", "xf", str(pack), "-C", str(tmp_path / "by-tar")], check=True)
    assert contents(tmp_path / "by-tar" / "bundle") == contents(fake_bundle.folder)
    assert contents(tmp_path / "by-tar" / "wheels") == {LONG_NAME: wheel.read_bytes()}
    with tarfile.open(pack) as archive:
        assert archive.getnames()[:2] == ["pack.json", "bundle/manifest.json"]
        assert all(member.isreg() for member in archive)


def test_sizes_beyond_8_gb_are_told_the_way_tar_reads_them() -> None:
    size = (8 << 30) + 5
    for name in ("bundle/weights.bin", f"wheels/{LONG_NAME}"):
        member = tarfile.TarInfo.frombuf(header("x", 1), "utf-8", "strict")
        assert (member.name, member.size) == ("x", 1)
        block = header(name, size)
        endless: Any = _Endless(block)
        with tarfile.open(fileobj=endless, mode="r|") as archive:
            found = archive.next()
            assert found is not None
            assert (found.name, found.size) == (name, size)


class _Endless:
    """A file that goes on with zeros."""

    def __init__(self, start: bytes) -> None:
        self._start = start

    def read(self, count: int) -> bytes:
        block, self._start = self._start[:count], self._start[count:]
        return block.ljust(count, b"\0")


def test_tensors_lie_on_pages_after_unpacking(int8_bundle: Path, tmp_path: Path) -> None:
    write_pack(Bundle.open(int8_bundle), tmp_path / "a.pack")
    bundle = unpack(tmp_path / "a.pack", tmp_path / "out")
    with bundle.path("weights.bin").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = np.frombuffer(mapped, np.uint8).ctypes.data
    for tensor in bundle.manifest.tensors.values():
        assert (start + tensor.offset) % mmap.PAGESIZE == 0
    bundle.verify_files()


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_changed_byte_and_any_other_length_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    bundle = FakeBundle(folder / "bundle").folder
    write_pack(Bundle.open(bundle), folder / "a.pack")
    content = bytearray((folder / "a.pack").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "add"]))
    if change == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del content[place:]
    else:
        content += b"x"
    (folder / "a.pack").write_bytes(content)
    with pytest.raises(BundleError) as raised:
        unpack(folder / "a.pack", folder / "out")
    assert str(raised.value).isprintable()
    assert not (folder / "out").exists()


@pytest.mark.parametrize("name", ["bundle/weights.bin", f"wheels/{LONG_NAME}"])
def test_a_damaged_part_is_named_and_the_rest_is_kept(
    pack: Path, tmp_path: Path, name: str
) -> None:
    good = pack.read_bytes()
    with tarfile.open(pack) as archive:
        place = archive.getmember(name).offset_data
    pack.write_bytes(good[: place + 3] + b"?" + good[place + 4 :])
    with pytest.raises(BundleError, match=f"{name}: sha256 does not match"):
        unpack(pack, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    pack.write_bytes(good)  # copied again
    unpack(pack, tmp_path / "out").verify_files()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "bundle/../../evil",
        "bundle//etc/evil",
        "/etc/evil",
        "../evil",
        "evil",
        "bundle/sub/evil",
        "bundle/",
        "bundle/..",
        "wheels/evil.py",
        "bundle/manifest.json",
        "bundle/ev\u00efl",
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    index = Index(
        parts=(
            Part(name="bundle/manifest.json", size=0, sha256="0" * 64),
            Part(name=name, size=4, sha256="0" * 64),
        )
    )
    content = index.to_bytes()
    archive = header("pack.json", len(content)) + content + padding(len(content))
    (tmp_path / "a.pack").write_bytes(archive + bytes(4096))
    with pytest.raises(BundleError, match=r"pack\.json: the pack is damaged"):
        unpack(tmp_path / "a.pack", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a.pack"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.update(format_version=2), "format_version 2 is newer than 1; upgrade shoal"),
        (lambda c: c.update(format_version=True), "damaged"),
        (lambda c: c.update(extra=1), "damaged"),
        (lambda c: c.pop("sha256"), "damaged"),
        (lambda c: c.update(parts={}), "damaged"),
        (lambda c: c.update(parts=[]), "damaged"),
        (lambda c: c["parts"].reverse(), "damaged"),
        (lambda c: c["parts"][1].update(size=-1), "damaged"),
        (lambda c: c["parts"][1].update(size=1 << 62), "damaged"),
        (lambda c: c["parts"][1].update(size=1.0), "damaged"),
        (lambda c: c["parts"][1].update(sha256="0"), "damaged"),
        (lambda c: c["parts"][1].update(mode=1), "damaged"),
    ],
)
def test_an_index_that_is_not_as_written_is_refused(
    pack: Path, tmp_path: Path, change: Callable[[dict[str, object]], None], expected: str
) -> None:
    with tarfile.open(pack) as archive:
        file = archive.extractfile("pack.json")
        assert file is not None
        content = json.loads(file.read())
    change(content)
    encoded = json.dumps(content).encode()
    pack.write_bytes(header("pack.json", len(encoded)) + encoded + bytes(5000))
    with pytest.raises(BundleError, match=expected):
        unpack(pack, tmp_path / "out")


def test_a_header_that_is_a_link_is_refused(pack: Path, tmp_path: Path) -> None:
    content = bytearray(pack.read_bytes())
    with tarfile.open(pack) as archive:
        place = archive.getmember("bundle/weights.bin").offset
    content[place + 156 : place + 157] = b"2"
    pack.write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle/weights.bin: its header is not as expected"):
        unpack(pack, tmp_path / "out")


def test_a_pack_of_what_is_no_bundle_leaves_nothing(
    fake_bundle: FakeBundle, tmp_path: Path
) -> None:
    files = {f"bundle/{name}": content for name, content in contents(fake_bundle.folder).items()}
    manifest = files.pop("bundle/manifest.json")
    for changed in (
        {"bundle/manifest.json": b"{}", **files},
        {"bundle/manifest.json": manifest, **files, "bundle/more.bin": b"more"},
        {"bundle/manifest.json": manifest, **files, "bundle/weights.bin": b"other" * 1639},
        {"bundle/manifest.json": manifest},
    ):
        (tmp_path / "a.pack").write_bytes(make_archive(changed))
        with pytest.raises(BundleError, match="holds no usable bundle"):
            unpack(tmp_path / "a.pack", tmp_path / "out")
        assert sorted(os.listdir(tmp_path)) == ["a.pack", "bundle"]


def test_an_existing_target_is_left_alone(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("out", "link"):
        with pytest.raises(InputError, match="exists already"):
            unpack(pack, tmp_path / name)
    with pytest.raises(InputError, match="no such folder"):
        unpack(pack, tmp_path / "none" / "out")
    bundle = Bundle.open(tmp_path / "bundle")
    with pytest.raises(InputError, match="exists already"):
        write_pack(bundle, pack)
    with pytest.raises(InputError, match="no such folder"):
        write_pack(bundle, tmp_path / "none" / "b.pack")


def test_what_is_no_pack_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("hello" * 1000)
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="expected a file that `shoal pack` made"):
        unpack(tmp_path / "pipe", tmp_path / "out")
    with pytest.raises(InputError, match="cannot be read"):
        unpack(tmp_path / "none", tmp_path / "out")
    for name in ("text", "empty"):
        with pytest.raises(BundleError, match=r"expected a pack .*, found another file"):
            unpack(tmp_path / name, tmp_path / "out")


@pytest.fixture
def stopped(pack: Path, tmp_path: Path) -> Path:
    """The hidden folder of an unpacking that was stopped within weights.bin."""
    with pytest.raises(KeyboardInterrupt):
        unpack(pack, tmp_path / "out", _interrupt_at("bundle/weights.bin"))
    (hidden,) = tmp_path.glob(".out.*")
    (hidden / "weights.bin.part").unlink()
    return hidden


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_left_in_the_hidden_folder_are_not_followed(
    pack: Path, stopped: Path, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "victim").write_text("mine")
    link(tmp_path / "victim", stopped / "weights.bin.part")
    with pytest.raises(RuntimeFailure, match=r"found weights\.bin\.part, a link"):
        unpack(pack, tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "mine"


def test_files_planted_in_the_hidden_folder_are_refused(
    pack: Path, stopped: Path, tmp_path: Path
) -> None:
    (stopped / "evil.sh").write_text("#!/bin/sh")
    with pytest.raises(RuntimeFailure, match=r"found 'evil\.sh', no part of the pack; remove"):
        unpack(pack, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_bytes_of_the_right_size_are_not_taken_over(
    pack: Path, stopped: Path, fake_bundle: FakeBundle, tmp_path: Path
) -> None:
    size = (fake_bundle.folder / "weights.bin").stat().st_size
    (stopped / "weights.bin").write_bytes(b"!" * size)
    unpack(pack, tmp_path / "out").verify_files()
    assert contents(tmp_path / "out") == contents(fake_bundle.folder)


def test_a_hidden_folder_that_others_may_write_to_is_refused(
    pack: Path, stopped: Path, tmp_path: Path
) -> None:
    stopped.chmod(0o777)
    with pytest.raises(RuntimeFailure, match="a folder that others may write to"):
        unpack(pack, tmp_path / "out")


@pytest.mark.parametrize("name", ["weights.bin", "weights.bin.part"])
def test_a_hidden_file_that_others_may_write_to_is_refused(
    pack: Path, stopped: Path, tmp_path: Path, name: str
) -> None:
    (stopped / name).write_text("mine")
    (stopped / name).chmod(0o666)
    with pytest.raises(
        RuntimeFailure, match=r"found weights\.bin.*, a link or open to others; rem"
    ):
        unpack(pack, tmp_path / "out")
    assert (stopped / name).read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_hidden_folder_of_another_user_is_refused(
    pack: Path, stopped: Path, tmp_path: Path
) -> None:
    os.chown(stopped, 12345, 12345)
    with pytest.raises(RuntimeFailure, match="a folder that others may write to"):
        unpack(pack, tmp_path / "out")


def _interrupt_at(name: str) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, part: str) -> None:
        if part == name:
            raise KeyboardInterrupt

    return progress


def test_a_stopped_unpacking_goes_on_from_where_it_was(
    fake_bundle: FakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.runtime.packing.unpack.BLOCK_BYTES", 512)
    write_pack(Bundle.open(fake_bundle.folder), tmp_path / "a.pack")
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "a.pack", tmp_path / "out", _interrupt_at("bundle/weights.bin"))
    (hidden,) = tmp_path.glob(".out.*")
    finished = {name: (hidden / name).stat().st_ino for name in ("decoder.onnx", "head.onnx")}
    unfinished = (hidden / "weights.bin.part").stat().st_ino
    # A loss of power may leave zeros where something was written, and more than was needed.
    (hidden / "weights.bin.part").write_bytes(bytes(range(256)) + bytes(20_000))
    unpack(tmp_path / "a.pack", tmp_path / "out").verify_files()
    assert contents(tmp_path / "out") == contents(fake_bundle.folder)
    for name, inode in {**finished, "weights.bin": unfinished}.items():
        assert (tmp_path / "out" / name).stat().st_ino == inode
    assert leftovers(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from shoal.runtime.packing import unpack
def die(done, total, part):
    if part == "bundle/weights.bin":
        os.kill(os.getpid(), signal.SIGKILL)
unpack.unpack(Path(sys.argv[1]), Path(sys.argv[2]), die)
"""


def test_a_killed_unpacking_goes_on(pack: Path, fake_bundle: FakeBundle, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(pack), str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    unpack(pack, tmp_path / "out").verify_files()
    assert contents(tmp_path / "out") == contents(fake_bundle.folder)


def test_two_at_once_do_not_disturb_each_other(pack: Path, tmp_path: Path) -> None:
    refused = []

    def progress(done: int, total: int, part: str) -> None:
        if part == "bundle/weights.bin":
            with pytest.raises(RuntimeFailure, match="another process unpacks the same pack"):
                unpack(pack, tmp_path / "out")
            refused.append(part)

    unpack(pack, tmp_path / "out", progress).verify_files()
    assert refused


def test_a_disk_without_room_is_found_out_first(
    pack: Path, fake_bundle: FakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5000))
    with pytest.raises(RuntimeFailure, match=r"expected room for \d+ bytes, found 5000"):
        unpack(pack, tmp_path / "out")
    with pytest.raises(RuntimeFailure, match=r"expected room for \d+ bytes, found 5000"):
        write_pack(Bundle.open(fake_bundle.folder), tmp_path / "b.pack")
    assert not (tmp_path / "b.pack").exists()
    assert not list(tmp_path.glob(".*.unpacking"))


def test_a_damaged_bundle_is_not_packed(fake_bundle: FakeBundle, tmp_path: Path) -> None:
    weights = fake_bundle.folder / "weights.bin"
    bundle = Bundle.open(fake_bundle.folder)
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(BundleError, match=r"weights.bin: sha256 does not match"):
        write_pack(bundle, tmp_path / "a.pack")
    assert sorted(os.listdir(tmp_path)) == ["bundle"]


def test_the_commands_say_what_they_did(
    fake_bundle: FakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    file, folder = str(tmp_path / "a.pack"), str(tmp_path / "out")
    options = ["--wheels", str(wheels)]
    assert main(["pack", str(fake_bundle.folder), file, *options]) == 1
    assert "expected a wheel of shoal, found 0 other wheels" in capsys.readouterr().err
    (wheels / "shoal-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    assert main(["pack", str(fake_bundle.folder), file, *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["wheels"] == ["shoal-0.1.0-py3-none-any.whl"]
    assert report["bytes"] == Path(file).stat().st_size
    assert main(["unpack", file, folder]) == 0
    assert capsys.readouterr().out == f"{folder}: 8.22 kB, every byte checked\n"
    assert main(["pack", folder, str(tmp_path / "b.pack"), "--fetch", "aarch64"]) == 1
    assert "expected --wheels" in capsys.readouterr().err


def test_a_wheel_for_the_device_is_looked_for_before_pip_is_asked(
    fake_bundle: FakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "shoal-9.9.9-py3-none-any.whl").write_bytes(b"of another version")
    command = ["pack", str(fake_bundle.folder), str(tmp_path / "a.pack"), "--wheels", str(wheels)]
    assert main([*command, "--fetch", "aarch64"]) == 1
    assert "for aarch64, found none" in capsys.readouterr().err
    assert not (tmp_path / "a.pack").exists()


def test_pip_that_fails_is_one_line(
    fake_bundle: FakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho 'WARNING: slow' >&2; echo 'ERROR: no such wheel' >&2; exit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr("shoal.runtime.packing.device_wheels.sys.executable", str(pip))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / f"shoal-{version('shoal')}-py3-none-any.whl").write_bytes(b"wheel")
    command = ["pack", str(fake_bundle.folder), str(tmp_path / "a.pack"), "--wheels", str(wheels)]
    assert main([*command, "--fetch", "aarch64", "--python", "3.12"]) == 1
    *progress, line = capsys.readouterr().err.splitlines()
    assert progress == ["pack: fetching wheels for aarch64 and Python 3.12"]
    assert "pip could not fetch all for aarch64 and Python 3.12 (ERROR: no such wheel)" in line
    assert not (tmp_path / "a.pack").exists()
