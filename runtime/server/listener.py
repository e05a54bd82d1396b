"""The socket of ``shoal run --listen``: addresses that will do, and who may connect."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.graphs.errors import InputError

_FORMS = "a path such as ./shoal.sock or 127.0.0.1:PORT"
_ADVICE: dict[int | None, str] = {
    None: "choose a shorter path",
    errno.EADDRINUSE: "another process listens there; end it or choose another address",
    errno.EACCES: "choose a port of at least 1024, or a folder where you may make files",
    errno.ENOENT: "make the folder or choose another path",
}


@contextmanager
def listen(address: str) -> Iterator[socket.socket]:
    """A listening socket that is gone, its file too, when the block ends.

    Args:
        address: path of a Unix socket (with a slash), which only this user may connect to, or
            HOST:PORT of a loopback address; port 0 takes any free one.

    Raises:
        InputError: the address is none, not a loopback one, or in use.
    """
    path = Path(address) if "/" in address else None
    try:
        if path is not None:
            _remove_stale(path)
        server = _tcp_socket(address) if path is None else _unix_socket(path)
    except OSError as error:
        advice = _ADVICE.get(error.errno, f"choose {_FORMS}")
        raise InputError(f"--listen {address}: {error.strerror or error}; {advice}") from error
    with server:
        own = None if path is None else path.lstat()
        try:
            yield server
        finally:
            if path is not None and own is not None:
                _remove(path, own)


def address_of(server: socket.socket) -> str:
    """Where a socket listens, as ``listen`` takes it."""
    name = server.getsockname()
    if isinstance(name, str):
        return name
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tcp_socket(address: str) -> socket.socket:
    # Digits as the world writes ports: int would take those of other scripts too.
    parts = re.fullmatch(r"(.*):([0-9]{1,5})", address)
    if parts is None or int(parts[2]) > 65535:
        raise InputError(f"--listen {address}: expected {_FORMS}; give one of the two")
    host = parts[1].removeprefix("[").removesuffix("]") or "127.0.0.1"
    try:
        found = socket.getaddrinfo(host, int(parts[2]), type=socket.SOCK_STREAM)[0]
    except UnicodeError as error:  # a label that is empty or too long
        raise InputError(f"--listen {address}: there is no such host; give {_FORMS}") from error
    family, kind, _, _, target = found
    if not (str(target[0]).startswith("127.") or target[0] == "::1"):
        raise InputError(
            f"--listen {address}: only loopback addresses such as 127.0.0.1: whoever reaches the "
            "socket can use the model; forward a port to it instead (ssh -L)"
        )
    server = socket.socket(family, kind)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(target)
        server.listen()
    except OSError:
        server.close()
        raise
    return server


def _unix_socket(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # for this user only
    try:
        server.bind(str(path))
        server.listen()
    except OSError:
        server.close()
        raise
    finally:
        os.umask(before)
    return server


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more.

    Raises:
        InputError: it is no socket, or somebody may be listening.
    """
    try:
        found = path.lstat()
    except OSError:
        return  # binding says what is wrong
    if not stat.S_ISSOCK(found.st_mode):
        raise InputError(f"--listen {path}: there is a file of this name; choose another")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a listener may be too busy to let anybody in
        try:
            probe.connect(str(path))
            reason = "it answers"
        except ConnectionRefusedError:  # the one error that says that nobody is there
            _remove(path, found)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            reason = error.strerror or str(error)
    raise InputError(
        f"--listen {path}: another process listens there ({reason}); end it or choose another path"
    )


def _remove(path: Path, socket_file: os.stat_result) -> None:
    """Remove a socket's file unless another took its place."""
    try:
        if os.path.samestat(path.lstat(), socket_file):
            path.unlink()
    except FileNotFoundError:
        return
