"""Answers lines until its input ends or it is told to stop.

Lines come through a socket or from stdin. As a systemd service of
``Type=notify`` it says when it is ready; SIGTERM ends it cleanly. See docs/service.md.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable
from typing import BinaryIO

from shoal.runtime.server.connections import serve
from shoal.runtime.server.failures import ClientGone
from shoal.runtime.server.line_buffer import LineBuffer
from shoal.runtime.server.line_requests import LONGEST_LINE_BYTES, LineRequests
from shoal.runtime.server.listener import address_of, listen
from shoal.runtime.server.termination import Terminated, raised_on_sigterm


def run_loop(
    requests: LineRequests,
    address: str | None,
    say: Callable[[str], object] = lambda text: None,
    show: Callable[[bytes], bytes] = lambda answer: answer,
) -> bool:
    """Answer lines until stdin ends or SIGTERM comes.

    Args:
        requests: answers them.
        address: where to listen, None for stdin; see ``listener.listen``.
        say: told when it is ready, and when it was stopped.
        show: what stdout gets for a part of an answer.

    Returns:
        Whether SIGTERM came.

    Raises:
        InputError: the address cannot be listened on.
        OSError: stdout takes no more.
    """
    with raised_on_sigterm():
        try:
            if address is None:
                say("ready: reading lines from stdin")
                notify("READY=1")
                _answer_stream(requests, sys.stdin.buffer, sys.stdout.fileno(), show)
            else:
                with listen(address) as server:
                    say(f"ready: listening on {address_of(server)}")
                    notify("READY=1")
                    serve(server, requests.answer)
        except Terminated:
            say("stopped")
            return True
        finally:
            notify("STOPPING=1")
    return False


def notify(state: str) -> None:
    """Tell the service manager, if one asked for it (sd_notify).

    Source: systemd, sd_notify(3): a datagram to the Unix socket in NOTIFY_SOCKET.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(state.encode(), "\0" + name[1:] if name[0] == "@" else name)
        except OSError as error:
            reason = error.strerror or error
            warnings.warn(f"NOTIFY_SOCKET {name}: {reason}", RuntimeWarning, stacklevel=1)


def _answer_stream(
    requests: LineRequests, source: BinaryIO, target: int, show: Callable[[bytes], bytes]
) -> None:
    """Answer the lines of a stream.

    Args:
        requests: answers them.
        source: the stream.
        target: descriptor for the answers. Nothing is left in a buffer, so that the process can end
            though nobody reads it.
        show: see ``run_loop``.
    """

    def send(data: bytes) -> None:
        data = show(data)
        while data:
            try:
                data = data[os.write(target, data) :]
            except OSError as error:
                raise ClientGone from OSError(error.errno, error.strerror, "stdout")

    def answer(line: bytes | None) -> None:
        try:
            requests.answer(line, send)
        except ClientGone as gone:
            raise gone.__cause__ or gone from None  # why stdout takes no more

    lines = LineBuffer()
    while data := source.readline(LONGEST_LINE_BYTES):
        lines.feed(data)
        while lines.has_line:
            answer(lines.take())
    lines.finish()
    if lines.has_line:
        answer(lines.take())
