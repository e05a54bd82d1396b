"""Manifests: changed as JSON, sealed again or not, then inspected and, where it matters, run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.fuzz_format import Samples, Use, link_bundle, require
from tests.fuzz.json_mutations import change_json, change_json_text, json_bytes

from shoal.graphs.contract import MANIFEST_FILE
from shoal.graphs.manifest import checksum
from shoal.graphs.manifest_reader import read_manifest
from shoal.runtime.bundle import Bundle
from shoal.runtime.commands.inspect_command import inspect_command
from shoal.runtime.opening import open_bundle

_PLACEHOLDER = "manifest_sha256 goes here"
_RUN = ("model", "graphs", "tensors", "formats", "files", "weights", "token_read_bytes")


def sealed(content: dict[str, Any]) -> bytes:
    """A manifest's text with the checksum of what it says, if it says anything."""
    text = json_bytes(content | {"manifest_sha256": _PLACEHOLDER})
    try:
        digest = checksum(json.loads(text))
    except (ValueError, RecursionError, AttributeError):
        digest = "0" * 64
    return text.replace(_PLACEHOLDER.encode(), digest.encode())


class ManifestFormat:
    """Manifests of the sample bundle."""

    def __init__(self, samples: Samples) -> None:
        self._bundle = samples.bundle
        self._text = (samples.bundle / MANIFEST_FILE).read_bytes()
        self._content = json.loads(self._text)

    def prepare(self, rng: Random, folder: Path) -> Use:
        """See ``FuzzFormat``."""
        is_sealed = rng.random() < 0.95
        changed = self._changed(rng)
        text = sealed(changed) if is_sealed and isinstance(changed, dict) else json_bytes(changed)
        text = change_json_text(rng, text)
        bundle = link_bundle(self._bundle, folder / "bundle", (MANIFEST_FILE,))
        (bundle / MANIFEST_FILE).write_bytes(text)
        as_json, role = rng.random() < 0.5, rng.choice(list(self._content["graphs"]))
        return lambda: self._use(bundle, text, as_json, role)

    def _changed(self, rng: Random) -> Any:
        """Parts with few values are changed almost as often as parts with many."""
        key = rng.choice((*self._content, *_RUN, *_RUN))
        if rng.random() < 0.1:
            return change_json(rng, self._content)
        return self._content | {key: change_json(rng, self._content[key])}

    def _use(self, bundle: Path, text: bytes, as_json: bool, role: str) -> None:
        inspect_command(argparse.Namespace(path=bundle, json=as_json, revision=None, token=None))
        found = json.loads(text.decode("utf-8-sig"))
        written = json.loads(read_manifest(text, MANIFEST_FILE).to_json())
        require(_canonical(written) == _canonical(found), "the manifest reads as another one")
        opened = Bundle.open(bundle)
        if role in opened.manifest.graphs:
            opened.checked_graph(role)
        if any(_canonical(found[key]) != _canonical(self._content[key]) for key in _RUN):
            model = open_bundle(bundle, threads=1, max_context=16)
            list(model.generate([1, 2], max_new_tokens=2))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def make(samples: Samples) -> ManifestFormat:
    """The format, from its samples."""
    return ManifestFormat(samples)
