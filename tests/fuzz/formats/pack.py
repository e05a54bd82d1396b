"""Packs: index, parts and archive changed, with prepared folders in the way, then unpacked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.formats.manifest import sealed
from tests.fuzz.fuzz_format import Samples, Use, require
from tests.fuzz.json_mutations import change_json, json_bytes
from tests.fuzz.mutations import NAMES, change_bytes
from tests.runtime.conftest import FakeBundle

from shoal.graphs.errors import ShoalError
from shoal.runtime.bundle import Bundle
from shoal.runtime.packing.pack import write_pack
from shoal.runtime.packing.pack_format import INDEX_NAME, end, header, padding
from shoal.runtime.packing.unpack import unpack

Parts = dict[str, bytes]
_WHEEL = "wheels/any-1.0-py3-none-any.whl"


class PackFormat:
    """Packs of a bundle that is small and cannot run, which unpacking does not ask for."""

    def __init__(self, samples: Samples) -> None:
        shutil.rmtree(samples.work / "fake", ignore_errors=True)
        (samples.work / "fake").mkdir()
        bundle = FakeBundle(samples.work / "fake" / "bundle")
        wheel = samples.work / "fake" / _WHEEL.partition("/")[2]
        wheel.write_bytes(b"wheel" * 100)
        path = samples.work / "fake" / "a.pack"
        self._index = write_pack(Bundle.open(bundle.folder), path, [wheel])
        self._sound = path.read_bytes()
        with tarfile.open(path) as archive:
            self._parts = {
                member.name: content.read()
                for member in archive
                if member.name != INDEX_NAME and (content := archive.extractfile(member))
            }

    def prepare(self, rng: Random, folder: Path) -> Use:
        """See ``FuzzFormat``."""
        pack, target = folder / "a.pack", folder / "target"
        kind = rng.randrange(4)
        content = self._sound
        if kind == 0:
            content = change_bytes(rng, content)
        elif kind == 1:
            content = archive_of(self._parts, change_json(rng, index_of(self._parts)))
        elif kind == 2:
            content = archive_of(self._changed_parts(rng))
        if kind == 3 or rng.random() < 0.1:
            self._prepare_staging(rng, folder, target)
        if kind != 3 and rng.random() < 0.1:
            content = change_bytes(rng, content)
        pack.write_bytes(content)
        is_sound = kind == 2 or content == self._sound
        return lambda: self._use(pack, target, is_sound)

    def _changed_parts(self, rng: Random) -> Parts:
        parts = dict(self._parts)
        name = rng.choice(list(parts))
        match rng.randrange(6):
            case 0:
                parts[name] = change_bytes(rng, parts[name])
            case 1:
                manifest = json.loads(parts["bundle/manifest.json"])
                key = rng.choice(list(manifest))
                changed = manifest | {key: change_json(rng, manifest[key])}
                parts["bundle/manifest.json"] = sealed(changed)
            case 2:
                del parts[name]
            case 3:
                parts[f"bundle/{rng.choice(NAMES)}"] = parts[name]
            case 4:
                parts[rng.choice((*NAMES, "bundle/evil.sh", "wheels/x.whl"))] = parts.pop(name)
            case _:
                names = list(parts)
                rng.shuffle(names)
                parts = {key: parts[key] for key in names}
        return parts

    def _prepare_staging(self, rng: Random, folder: Path, target: Path) -> None:
        """What somebody else may have put where the bundle will be unpacked."""
        canary = folder.parent / "outside" / "canary"
        staging = folder / f".{target.name}.{self._index.pack_id[:16]}.unpacking"
        if rng.random() < 0.1:
            staging.symlink_to(rng.choice((canary.parent, canary, Path("nowhere"))))
            return
        staging.mkdir(mode=rng.choice((0o755, 0o755, 0o755, 0o777)))
        for _ in range(rng.randint(1, 4)):
            part = rng.choice([name for name in self._parts if name.startswith("bundle/")])
            content = self._parts[part]
            name = part.partition("/")[2] + rng.choice(("", ".part"))
            place = staging / rng.choice((name, name, name, "evil.sh", "..part", "a.part"))
            if os.path.lexists(place):
                continue
            match rng.randrange(7):
                case 0:
                    place.symlink_to(rng.choice((canary, Path("../../outside/new"))))
                case 1:
                    os.link(canary, place)
                case 2:
                    place.mkdir()
                case 3:
                    os.mkfifo(place)
                case 4:
                    place.write_bytes(change_bytes(rng, content))
                case 5:
                    place.write_bytes(content[: rng.randint(0, len(content))])
                case _:
                    place.write_bytes(rng.randbytes(len(content)))

    def _use(self, pack: Path, target: Path, is_sound: bool) -> None:
        try:
            unpack(pack, target)
        except ShoalError:
            require(not os.path.lexists(target), "the target is there after a refusal")
            raise
        require(is_sound, "a pack with other bytes than were written")
        found = {path.name: path.read_bytes() for path in target.iterdir()}
        require(not any(path.is_symlink() for path in target.iterdir()), "a link in the target")
        with tarfile.open(pack) as archive:
            members = {member.name: archive.extractfile(member) for member in archive}
        expected = [name for name in members if name.startswith("bundle/")]
        require(len(expected) == len(found), "other files than the archive has")
        Bundle.open(target).verify_files()


def index_of(parts: Parts) -> dict[str, Any]:
    """What pack.json says of parts, without its checksum."""
    return {
        "format_version": 1,
        "parts": [
            {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in parts.items()
        ],
    }


def archive_of(parts: Parts, index: Any = None) -> bytes:
    """An archive of any parts, sealed as the writer would."""
    content = index_of(parts) if index is None else index
    if isinstance(content, dict) and "sha256" not in content:
        digest = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
        content = content | {"sha256": digest}
    text = json.dumps(content, indent=1).encode() + b"\n"
    if b"\\ue000" in text:
        text = json_bytes(content)
    archive = header(INDEX_NAME, len(text)) + text + padding(len(text))
    for name, data in parts.items():
        plain = name.encode("ascii", "replace").decode()
        archive += header(plain, len(data)) + data + padding(len(data))
    return archive + end()


def make(samples: Samples) -> PackFormat:
    """The format, from its samples."""
    return PackFormat(samples)
