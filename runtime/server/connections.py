"""Who is connected to ``shoal run --listen``: one line is answered at a time, clients take turns.

Everything happens in one thread, which sleeps while there is nothing to do and never waits for one
client: what that does not read is kept until it does, and its next line waits until then. While an
answer is computed, others are still let in, read and sent to.
"""

from __future__ import annotations

import errno
import math
import select
import socket
import time
from collections.abc import Callable
from typing import NoReturn

from shoal.runtime.server.failures import ClientGone
from shoal.runtime.server.line_buffer import LineBuffer
from shoal.runtime.server.line_requests import Send

MOST_CLIENTS = 32
"""Connections at a time; further ones wait until one of these ends or loses its place."""

IDLE_S = 10.0
"""Who has neither sent a line nor taken an answer for so long loses its place to who waits."""

_READ_BYTES = 1 << 16
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_S = 1.0  # before the next try to let somebody in after one of these

AnswerLine = Callable[[bytes | None, Send], None]
"""See ``LineRequests.answer``."""


def serve(server: socket.socket, answer: AnswerLine) -> NoReturn:
    """Answer lines of all who connect, until an exception of ``answer`` or a signal ends it.

    Args:
        server: a listening socket.
        answer: answers one line.
    """
    server.setblocking(False)
    connections = Connections(server)
    try:
        while True:
            connections.exchange(wait=True)
            connections.answer_a_line_each(answer)
    finally:
        connections.close()


class Connections:
    """All connections of a listening socket.

    Args:
        server: the socket, which does not block.
    """

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._clients: list[_Client] = []
        self._pause_until_s = -math.inf

    def exchange(self, *, wait: bool) -> None:
        """Let clients in, read what they send, send what they are owed, drop who went away.

        Args:
            wait: sleep until there is something to do, lines to answer included.
        """
        poll = select.poll()
        clients = {client.connection.fileno(): client for client in self._clients}
        for descriptor, client in clients.items():
            poll.register(descriptor, client.events)
        now_s, place_s = time.monotonic(), self._next_place_s()
        if place_s <= now_s:
            poll.register(self._server, select.POLLIN)
        events = dict(poll.poll(self._timeout_ms(place_s - now_s) if wait else 0))
        for descriptor, client in clients.items():
            client.handle(events.get(descriptor, 0))
        self._drop_ended()
        if self._server.fileno() in events:
            self._let_in()

    def answer_a_line_each(self, answer: AnswerLine) -> None:
        """Answer one line of every client that has one and has read its last answer."""
        for client in [client for client in self._clients if client.can_be_answered]:
            if not client.is_gone:  # it may have gone while another was answered
                self._answer_line(client, answer)
        self._drop_ended()

    def close(self) -> None:
        """End all connections."""
        for client in self._clients:
            client.connection.close()

    def _answer_line(self, client: _Client, answer: AnswerLine) -> None:
        def send(data: bytes) -> None:
            client.unsent += data
            self.exchange(wait=False)
            if client.is_gone:
                raise ClientGone

        client.is_being_answered = True
        try:
            answer(client.lines.take(), send)
        except ClientGone:
            client.is_gone = True
        finally:
            client.is_being_answered = False
            client.active_s = time.monotonic()

    def _next_place_s(self) -> float:
        """When another client can be let in, infinity if nobody knows."""
        if len(self._clients) < MOST_CLIENTS:
            return self._pause_until_s
        idle = (client.active_s for client in self._clients if client.is_idle)
        return max(self._pause_until_s, min(idle, default=math.inf) + IDLE_S)

    def _timeout_ms(self, seconds: float) -> float | None:
        if any(client.can_be_answered for client in self._clients):
            return 0
        return seconds * 1000 + 1 if 0 < seconds < math.inf else None

    def _let_in(self) -> None:
        if self._next_place_s() > time.monotonic():
            return  # who seemed idle was not
        try:
            connection, _ = self._server.accept()
        except OSError as error:  # if not for want of descriptors, it went away before its turn
            if error.errno in _NO_DESCRIPTORS:
                self._pause_until_s = time.monotonic() + _PAUSE_S
            return
        if len(self._clients) == MOST_CLIENTS:
            idle = [client for client in self._clients if client.is_idle]
            min(idle, key=lambda client: client.active_s).is_gone = True
            self._drop_ended()
        self._clients.append(_Client(connection))

    def _drop_ended(self) -> None:
        for client in self._clients:
            if client.has_ended:
                client.connection.close()
        self._clients = [client for client in self._clients if not client.has_ended]


class _Client:
    """One connection: the lines it has sent that wait, and what it has not read yet."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.lines = LineBuffer()
        self.unsent = bytearray()
        self.active_s = time.monotonic()  # when it last sent a whole line or had read an answer
        self.is_being_answered = False
        self.is_gone = False
        self._sends_no_more = False  # it may still read

    @property
    def can_be_answered(self) -> bool:
        """Whether it waits for us."""
        return self.lines.has_line and not self.unsent and not self.is_gone

    @property
    def is_idle(self) -> bool:
        """Whether we wait for it."""
        return not self.is_being_answered and not self.can_be_answered

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing more to do for it."""
        if self.is_gone:
            return True
        has_work = self.is_being_answered or self.lines.has_line or self.unsent
        return self._sends_no_more and not has_work

    @property
    def events(self) -> int:
        """What to wake up for, beside its end."""
        # No reading while lines wait, so that nobody can fill the memory.
        reads = not self._sends_no_more and not self.lines.has_line
        return (select.POLLIN if reads else 0) | (select.POLLOUT if self.unsent else 0)

    def handle(self, events: int) -> None:
        """Read and send as far as that is possible now."""
        try:
            if events & select.POLLIN:
                self._read()
            if events & select.POLLOUT:
                self._send()
        except BlockingIOError:
            return
        except OSError:
            self.is_gone = True
        if events & (select.POLLERR | select.POLLHUP | select.POLLNVAL) and not (
            events & select.POLLIN
        ):
            self.is_gone = True

    def _read(self) -> None:
        data = self.connection.recv(_READ_BYTES)
        self.lines.feed(data)
        if not data:
            self._sends_no_more = True
            self.lines.finish()
        if self.lines.has_line:
            self.active_s = time.monotonic()

    def _send(self) -> None:
        del self.unsent[: self.connection.send(self.unsent)]
        if not self.unsent:
            self.active_s = time.monotonic()
