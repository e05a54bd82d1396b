"""As much of the Hugging Face Hub as fetching a model needs, on a loopback port."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

MODEL = "deep-sea/tiny"
GATED = "deep-sea/gated"
PRIVATE = "deep-sea/private"
PICKLED = "deep-sea/pickled"
MERGED = "deep-sea/merged"
TOKEN = "hf_of_a_reader"


class HubStub:
    """Models by name: a folder each, whose only revision is main."""

    def __init__(self, models: dict[str, Path]) -> None:
        self.models = models
        self.commit = "0123456789abcdef0123456789abcdef01234567"
        self.fetched: list[str] = []
        """Files whose content was sent, with "[first-last]" when it was a part."""
        self.endpoint = ""


@contextmanager
def hub_stub(models: dict[str, Path]) -> Iterator[HubStub]:
    stub = HubStub(models)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"stub": stub}))
    stub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    stub: HubStub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        """Tests read stderr."""

    def _answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        name, action, revision, *rest = "/".join(parts[:2]), *parts[2:]
        if refusal := self._refusal(name, revision):
            return self._send(*refusal)
        folder = self.stub.models[name]
        if not is_api:
            return self._send_file(folder / "/".join(rest))
        if action == "revision":
            return self._send_json({"id": name, "sha": self.stub.commit, "siblings": []})
        assert action == "tree", self.path
        return self._send_json([_entry(path) for path in sorted(folder.iterdir())])

    def _refusal(self, name: str, revision: str) -> tuple[int, dict[str, str]] | None:
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if name not in self.stub.models or (name == PRIVATE and not is_known):
            return 404, {"X-Error-Code": "RepoNotFound"}
        if name == GATED and not is_known:
            return 403, {"X-Error-Code": "GatedRepo"}
        if revision not in ("main", self.stub.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}
        return None

    def _send_file(self, path: Path) -> None:
        if not path.exists():
            return self._send(404, {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        headers = {"ETag": f'"{_blob_id(content)}"', "X-Repo-Commit": self.stub.commit}
        headers["Accept-Ranges"] = "bytes"
        wanted = self.headers.get("Range")
        if self.command == "GET":
            self.stub.fetched.append(path.name + (f"[{wanted[6:]}]" if wanted else ""))
        if wanted is None:
            return self._send(200, headers, content)
        first, last = wanted.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last or len(content)) + 1]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        return self._send(206, headers, part)

    def _send_json(self, value: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def _entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"type": "file", "path": path.name, "size": len(content), "oid": _blob_id(content)}


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
