"""The pack: one file that holds a bundle and, if wanted, the wheels to run it with.

A pack is an uncompressed tar archive (POSIX ustar with pax records), so that ``tar xf`` takes it
apart where shoal is not installed yet:

    pack.json            what follows: name, size and sha256 of each part, in order
    bundle/NAME          the files of the bundle, its manifest first
    wheels/NAME.whl      Python packages for the device

No freedom is left: pack.json determines every other byte but the parts themselves. A reader
computes where each part has to be and compares the headers with what it would have written, so a
pack from anywhere can hold no links, no paths out of the folder and no sizes that lie.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shoal.graphs.contract import MANIFEST_FILE
from shoal.graphs.errors import BundleError
from shoal.graphs.manifest_reader import is_plain_file_name

FORMAT_VERSION = 1
INDEX_NAME = "pack.json"
BUNDLE_FOLDER, WHEEL_FOLDER = "bundle", "wheels"
COPY_AGAIN = "the pack is damaged; copy it again"

_RECORD = 512  # everything in a tar archive is a multiple of this
_END = bytes(2 * _RECORD)
_MAX_INDEX_BYTES = 8 << 20
_MAX_PART_BYTES = 1 << 60
_MAX_PARTS = 10_000
_LONGEST_NAME = 100  # bytes, and the largest size, that a header holds without a pax record
_LARGEST_SIZE = (8 << 30) - 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file in a pack."""

    name: str  # with its folder
    size: int  # bytes
    sha256: str

    @property
    def folder(self) -> str:
        """Bundle or wheels."""
        return self.name.partition("/")[0]

    @property
    def file_name(self) -> str:
        """The name without the folder."""
        return self.name.partition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Index:
    """What pack.json says."""

    parts: tuple[Part, ...]

    def to_bytes(self) -> bytes:
        """pack.json, the same bytes for the same parts."""
        content = {
            "format_version": FORMAT_VERSION,
            "parts": [dataclasses.asdict(part) for part in self.parts],
        }
        return (_json(content | {"sha256": _sha256(_json(content))}) + "\n").encode()

    @property
    def pack_id(self) -> str:
        """Tells this pack from any other."""
        return _sha256(self.to_bytes().decode())

    def offsets(self) -> dict[str, int]:
        """Where the content of each part begins."""
        place = _end_of(INDEX_NAME, len(self.to_bytes()), 0)
        found = {}
        for part in self.parts:
            found[part.name] = place + len(header(part.name, part.size))
            place = _end_of(part.name, part.size, place)
        return found

    def pack_bytes(self) -> int:
        """The size of the whole file."""
        place = _end_of(INDEX_NAME, len(self.to_bytes()), 0)
        for part in self.parts:
            place = _end_of(part.name, part.size, place)
        return place + len(_END)

    def of(self, folder: str) -> list[Part]:
        """The parts in a folder."""
        return [part for part in self.parts if part.folder == folder]


def header(name: str, size: int) -> bytes:
    """What stands before the content of a file in a tar archive."""
    records = b""
    if len(name) > _LONGEST_NAME:
        records += _pax_record("path", name)
    if size > _LARGEST_SIZE:
        records += _pax_record("size", str(size))
    plain = _ustar(name[:_LONGEST_NAME], min(size, _LARGEST_SIZE), b"0")
    if not records:
        return plain
    return _ustar("pax", len(records), b"x") + records + padding(len(records)) + plain


def padding(size: int) -> bytes:
    """The zeros that follow a content of that size."""
    return bytes(-size % _RECORD)


def end() -> bytes:
    """What stands at the end of an archive."""
    return _END


def read_index(file: IO[bytes], where: Path, size: int) -> Index:
    """Read pack.json at the start of a file, and check that the rest can be what it says.

    Args:
        file: at its start; contents of parts are not read.
        where: for messages.
        size: of the file.

    Raises:
        BundleError: no pack, a newer one, or one that is truncated or damaged.
    """
    start = file.read(_RECORD)
    length = re.fullmatch(rb"[0-7]{11}\0", start[124:136])
    if length is None or not start.startswith(INDEX_NAME.encode() + b"\0"):
        raise BundleError(f"{where}: expected a pack (made by `shoal pack`), found another file")
    index_bytes = min(int(length[0][:-1], 8), _MAX_INDEX_BYTES)
    content = file.read(index_bytes)
    index = _parse_index(content, where)
    if start != header(INDEX_NAME, len(content)):
        raise BundleError(f"{where}: {INDEX_NAME}: {COPY_AGAIN}")
    expected = index.pack_bytes()
    if size != expected:
        raise BundleError(f"{where}: expected {expected} bytes, found {size}; copy it again")
    return index


def check_headers(file: IO[bytes], index: Index, where: Path) -> None:
    """Check everything between the parts.

    Raises:
        BundleError: names the part whose header is not as it should be.
    """
    size = len(index.to_bytes())
    place = len(header(INDEX_NAME, size)) + size
    for part in index.parts:
        file.seek(place)
        expected = padding(size) + header(part.name, part.size)
        if file.read(len(expected)) != expected:
            raise BundleError(f"{where}: {part.name}: its header is not as expected; {COPY_AGAIN}")
        size = part.size
        place += len(expected) + size
    file.seek(place)
    if file.read() != padding(size) + _END:
        raise BundleError(f"{where}: the end of the archive is not as expected; {COPY_AGAIN}")


def _parse_index(content: bytes, where: Path) -> Index:
    damaged = BundleError(f"{where}: {INDEX_NAME}: {COPY_AGAIN}")
    try:
        found = json.loads(content)
        version = found["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise BundleError(
                f"{where}: format_version {version} is newer than {FORMAT_VERSION}; upgrade shoal"
            )
        index = Index(parts=tuple(Part(**entry) for entry in found["parts"][:_MAX_PARTS]))
        if not _are_parts(index.parts) or index.to_bytes() != content:
            raise damaged
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged from error
    return index


def _are_parts(parts: tuple[Part, ...]) -> bool:
    return (
        all(_is_part(part) for part in parts)
        and len({part.name for part in parts}) == len(parts)
        and parts[:1] != ()
        and parts[0].name == f"{BUNDLE_FOLDER}/{MANIFEST_FILE}"
    )


def _is_part(part: Part) -> bool:
    values: tuple[Any, ...] = (part.name, part.size, part.sha256)
    return (
        [type(value) for value in values] == [str, int, str]
        and part.folder in (BUNDLE_FOLDER, WHEEL_FOLDER)
        and part.name.isascii()
        and is_plain_file_name(part.file_name)
        and (part.folder == BUNDLE_FOLDER or part.name.endswith(".whl"))
        and 0 <= part.size <= _MAX_PART_BYTES
        and re.fullmatch("[0-9a-f]{64}", part.sha256) is not None
    )


def _end_of(name: str, size: int, start: int) -> int:
    return start + len(header(name, size)) + size + len(padding(size))


def _ustar(name: str, size: int, kind: bytes) -> bytes:
    fields = [
        (name.encode("ascii"), 100),
        (b"0000644\0", 8),  # mode
        (b"0000000\0", 8),  # user
        (b"0000000\0", 8),  # group
        (b"%011o\0" % size, 12),
        (b"00000000000\0", 12),  # time of change: equal bundles give equal packs
        (b" " * 8, 8),  # checksum, as it counts itself
        (kind, 1),
        (b"", 100),  # name of a linked file
        (b"ustar\x0000", 8),
    ]
    block = b"".join(value.ljust(width, b"\0") for value, width in fields).ljust(_RECORD, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _pax_record(key: str, value: str) -> bytes:
    """``LENGTH KEY=VALUE`` and a line break, of LENGTH bytes in all."""
    rest = len(f" {key}={value}\n")
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return f"{length} {key}={value}\n".encode("ascii")


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
