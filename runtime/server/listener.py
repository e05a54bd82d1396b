"""A socket for ``shoal run --listen``: one line is answered at a time, clients take turns.

Everything happens in one thread, which sleeps while there is nothing to do.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from shoal.graphs.errors import InputError
from shoal.runtime.server.line_requests import LONGEST_LINE_BYTES, Send

MOST_CLIENTS = 32
"""Connections at a time; further ones wait until one of these ends."""

_SEND_TIMEOUT_S = 10.0  # a client that does not read for so long is dropped
_READ_BYTES = 1 << 16

AnswerLine = Callable[[bytes | None, Send], None]
"""See ``LineRequests.answer``."""


class ClientGone(Exception):
    """The client that asked does not read the answer any more."""


@contextmanager
def listen(address: str) -> Iterator[socket.socket]:
    """A listening socket that is gone, its file too, when the block ends.

    Args:
        address: path of a Unix socket (with a slash), which only this user may connect to, or
            HOST:PORT of a loopback address; port 0 takes any free one.

    Raises:
        InputError: the address is none, not a loopback one, or in use.
    """
    unix = "/" in address
    path = Path(address) if unix else None
    if path is not None:
        _remove_stale(path)
    server = socket.socket(socket.AF_UNIX) if unix else _tcp_socket(address)
    try:
        try:
            if path is not None:
                _bind_private(server, path)
            server.listen()
        except OSError as error:
            raise InputError(f"--listen {address}: {error.strerror or error}") from error
        try:
            yield server
        finally:
            if path is not None:
                path.unlink(missing_ok=True)
    finally:
        server.close()


def address_of(server: socket.socket) -> str:
    """Where a socket listens, as ``listen`` takes it."""
    name = server.getsockname()
    if isinstance(name, str):
        return name
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve(server: socket.socket, answer: AnswerLine) -> NoReturn:
    """Answer lines of all who connect, until an exception of ``answer`` or a signal ends it.

    Args:
        server: a listening socket.
        answer: answers one line.
    """
    clients: list[_Client] = []
    with selectors.DefaultSelector() as selector:
        server.setblocking(False)
        try:
            while True:
                _watch(selector, server, clients)
                busy = any(client.has_line for client in clients)
                for key, _ in selector.select(0 if busy else None):
                    if key.fileobj is server:
                        clients += _accept(server)
                    else:
                        key.data.read()
                for client in clients:
                    if client.has_line:
                        client.answer_one(answer)
                clients = [client for client in clients if client.goes_on()]
        finally:
            for client in clients:
                client.connection.close()


class _Client:
    """One connection: what it has sent, and the lines in it that wait."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(_SEND_TIMEOUT_S)
        self._lines = LineBuffer()
        self._has_ended = False  # it will send no more, but may still read
        self._is_gone = False

    @property
    def has_line(self) -> bool:
        return self._lines.has_line and not self._is_gone

    @property
    def wants_to_read(self) -> bool:
        """False while lines wait, so that nobody can fill the memory."""
        return not self._has_ended and not self.has_line

    def read(self) -> None:
        try:
            data = self.connection.recv(_READ_BYTES)
        except OSError:
            self._is_gone = True
            return
        self._lines.feed(data)
        if not data:
            self._has_ended = True
            self._lines.finish()

    def answer_one(self, answer: AnswerLine) -> None:
        try:
            answer(self._lines.take(), self._send)
        except ClientGone:
            self._is_gone = True

    def goes_on(self) -> bool:
        """Whether there is more to do for it; closes the connection if not."""
        if not self._is_gone and (self.has_line or not self._has_ended):
            return True
        self.connection.close()
        return False

    def _send(self, data: bytes) -> None:
        poll = select.poll()
        poll.register(self.connection, 0)  # errors and hang-ups only
        if poll.poll(0):
            raise ClientGone
        try:
            self.connection.sendall(data)
        except OSError as error:
            raise ClientGone from error


class LineBuffer:
    """Splits what comes in pieces into lines, and holds no more than one line that is too long."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[bytes | None] = []
        self._is_too_long = False  # the line that ``rest`` would continue

    @property
    def has_line(self) -> bool:
        """Whether ``take`` has something to return."""
        return bool(self._lines)

    def feed(self, data: bytes) -> None:
        """Add what has come."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._end_line(line)
        self._extend(rest)

    def finish(self) -> None:
        """What came after the last line break is a line too."""
        if self._rest or self._is_too_long:
            self._end_line(b"")

    def take(self) -> bytes | None:
        """The oldest line, None for one that was too long."""
        return self._lines.pop(0)

    def _extend(self, data: bytes) -> None:
        self._rest += data
        if len(self._rest) > LONGEST_LINE_BYTES + 1:  # with a carriage return
            self._rest, self._is_too_long = b"", True

    def _end_line(self, data: bytes) -> None:
        self._extend(data)
        line = self._rest.removesuffix(b"\r")
        too_long = self._is_too_long or len(line) > LONGEST_LINE_BYTES
        self._lines.append(None if too_long else line)
        self._rest, self._is_too_long = b"", False


def _accept(server: socket.socket) -> list[_Client]:
    try:
        connection, _ = server.accept()
    except OSError:  # it went away before it was its turn
        return []
    return [_Client(connection)]


def _watch(selector: selectors.BaseSelector, server: socket.socket, clients: list[_Client]) -> None:
    """Wake up for what can be handled now."""
    wanted = {client.connection: client for client in clients if client.wants_to_read}
    for key in list(selector.get_map().values()):
        selector.unregister(key.fileobj)
    if len(clients) < MOST_CLIENTS:
        selector.register(server, selectors.EVENT_READ)
    for connection, client in wanted.items():
        selector.register(connection, selectors.EVENT_READ, client)


def _tcp_socket(address: str) -> socket.socket:
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise InputError(
            f"--listen {address}: expected a path such as ./shoal.sock or 127.0.0.1:PORT"
        )
    try:
        family, kind, _, _, found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InputError(f"--listen {address}: {error.strerror or error}") from error
    if not (str(found[0]).startswith("127.") or found[0] == "::1"):
        raise InputError(
            f"--listen {address}: only loopback addresses such as 127.0.0.1: whoever reaches the "
            "socket can use the model; forward a port to it instead (ssh -L)"
        )
    server = socket.socket(family, kind)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(found)
    except OSError as error:
        server.close()
        raise InputError(f"--listen {address}: {error.strerror or error}") from error
    return server


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise InputError(f"--listen {path}: there is a file of this name; choose another")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise InputError(f"--listen {path}: another process listens there; choose another path")


def _bind_private(server: socket.socket, path: Path) -> None:
    before = os.umask(0o177)
    try:
        server.bind(str(path))
    finally:
        os.umask(before)
