"""No client keeps another from being answered, whatever it does or does not do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from shoal.runtime.server import connections
from shoal.runtime.server.connections import MOST_CLIENTS, Connections, serve
from shoal.runtime.server.listener import listen

LARGE = b"x" * (4 << 20)  # more than a socket holds


class _End(Exception):
    """Ends the service of a test."""


def answer(line: bytes | None, send: Callable[[bytes], object]) -> None:
    """``large`` is answered with more than a socket holds, ``slow`` bit by bit, others as sent."""
    if line == b"end":
        raise _End
    if line == b"slow":
        for _ in range(200):
            send(b".")
            time.sleep(0.01)
    send((LARGE if line == b"large" else line or b"") + b"\n")


def serve_until_end(server: socket.socket) -> None:
    with suppress(_End):
        serve(server, answer)


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[], socket.socket]]:
    """Connects clients to a service in a thread."""
    path, opened = str(tmp_path / "s"), []

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(path)
        opened.append(client)
        return client

    with listen(path) as server:
        thread = threading.Thread(target=serve_until_end, args=(server,))
        thread.start()
        yield connect
        for client in opened:
            client.close()
        with connect() as last:
            last.sendall(b"end\n")
            thread.join()


def ask(client: socket.socket, line: bytes) -> float:
    """Ask and read the answer; returns how long that took in seconds."""
    started_s = time.monotonic()
    client.sendall(line + b"\n")
    assert client.recv(100) == line + b"\n"
    return time.monotonic() - started_s


def test_who_does_not_read_an_answer_holds_nobody_up(
    connect: Callable[[], socket.socket],
) -> None:
    stuck, other = connect(), connect()
    stuck.sendall(b"large\nagain\n")
    assert stuck.recv(1) == b"x"
    assert max(ask(other, b"hello") for _ in range(5)) < 5
    received = b"x"
    while len(received) < len(LARGE) + 1:
        received += stuck.recv(1 << 20)
    next_answer = received[len(LARGE) + 1 :] or stuck.recv(100)  # it may come in one piece
    assert next_answer == b"again\n", "its next line is answered when the answer was read"


def test_others_are_let_in_and_read_from_while_an_answer_is_computed(
    connect: Callable[[], socket.socket],
) -> None:
    stuck, slow = connect(), connect()
    stuck.sendall(b"large\n")
    assert stuck.recv(1) == b"x"
    slow.sendall(b"slow\n")
    assert slow.recv(1) == b"."
    slow.setblocking(False)
    received = 1
    while received < len(LARGE) + 1:
        received += len(stuck.recv(1 << 20))
    answered = b"."
    with suppress(BlockingIOError):
        answered += slow.recv(1000)
    assert not answered.endswith(b"\n"), "that did not have to wait for the slow answer"


def test_idle_clients_lose_their_places_to_those_who_wait(
    connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE_S", 0.3)
    idle = [connect() for _ in range(MOST_CLIENTS)]
    idle[1].sendall(b"half a line")
    idle[2].sendall(b"large\n")
    assert idle[2].recv(1) == b"x"
    waiting = [connect() for _ in range(3)]
    for client in waiting:
        assert ask(client, b"hello") < 5
    time.sleep(0.5)
    assert ask(waiting[0], b"hello") < 5, "nobody else waits for a place"
    assert idle[0].recv(1) == b"", "the longest idle went first"


def test_half_a_line_now_and_then_keeps_no_place(
    connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE_S", 0.3)
    clients = [connect() for _ in range(MOST_CLIENTS)]
    waiting = connect()
    waiting.sendall(b"hello\n")
    waiting.settimeout(0.1)
    for _ in range(50):
        for client in clients:
            with suppress(OSError):
                client.sendall(b".")
        with suppress(TimeoutError):
            assert waiting.recv(100) == b"hello\n"
            break
    else:
        pytest.fail("nobody lost a place")


def test_without_descriptors_nobody_is_let_in_and_nothing_spins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exhausted:
        tries = 0

        def __init__(self, server: socket.socket) -> None:
            self.fileno = server.fileno

        def accept(self) -> None:
            self.tries += 1
            raise OSError(24, "Too many open files")

    monkeypatch.setattr(connections, "_PAUSE_S", 0.2)
    with listen(str(tmp_path / "s")) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        exhausted = Exhausted(server)
        waiting = Connections(exhausted)  # type: ignore[arg-type]
        end_s = time.monotonic() + 0.5
        while time.monotonic() < end_s:
            waiting.exchange(wait=True)
    assert 2 <= exhausted.tries <= 4
