"""What a connection does before it costs an association: its TLS handshake, and a first byte.

Each has a thread of its own for it, which sleeps: whoever stops here keeps nobody waiting.
"""

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from datetime import timedelta

import structlog

from dicom_node.tls import reason

log = structlog.get_logger(__name__)

LINGER = timedelta(seconds=1)
"""How long a peer has to read our last word."""

_LINGER_BYTES = 1 << 24
_TLS_HANDSHAKE = b"\x16"  # begins a record (RFC 8446 section 5.1), and no PDU


TurnAway = Callable[[str, str], None]
"""Hears the address of who is not who it should be, by its certificate, and why."""


def greets(connection: socket.socket, address: str, patience: timedelta, turn_away: TurnAway) -> bool:
    """Wait for a handshake where TLS is spoken, and for the first byte; return whether it has come in time."""
    deadline = time.monotonic() + patience.total_seconds()
    try:
        if isinstance(connection, ssl.SSLSocket) and not _shakes_hands(connection, address, deadline, turn_away):
            return False
        first = _peek(connection, deadline)
    except OSError:  # reset
        return False
    if first is None:
        log.warning("connection_silent", address=address)
    elif first == _TLS_HANDSHAKE and not isinstance(connection, ssl.SSLSocket):
        log.warning("tls_refused", address=address, reason="the other side speaks TLS, this port does not: [node.tls]")
        return False
    return bool(first)


def _shakes_hands(connection: ssl.SSLSocket, address: str, deadline: float, turn_away: TurnAway) -> bool:
    first = _peek(connection, deadline)
    if first == b"":  # a probe of a load balancer
        return False
    connection.settimeout(max(deadline - time.monotonic(), 0.001))
    try:
        connection.do_handshake()  # Python's time-out is for all of it
    except OSError as error:
        log.warning("tls_refused", address=address, reason=reason(error))
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            turn_away(address, reason(error))
        if not isinstance(error, TimeoutError):
            linger(connection)
        return False
    return True


def _peek(connection: socket.socket, deadline: float) -> bytes | None:
    """Return the first byte on the line, none if it was closed, or None if nothing came; it stays there to be read."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
        return None
    return socket.socket.recv(connection, 1, socket.MSG_PEEK)  # as it is on the line: SSLSocket does not peek


def linger(raw: socket.socket) -> None:
    """Let the last word to a peer arrive: with unread bytes the system would send a reset, which may overtake it."""
    shut_down(raw, socket.SHUT_WR)
    deadline, left = time.monotonic() + LINGER.total_seconds(), _LINGER_BYTES
    while left > 0 and (patience := deadline - time.monotonic()) > 0:
        raw.settimeout(patience)
        try:
            piece = socket.socket.recv(raw, 1 << 16)  # what TLS would make of it is nobody's business any more
        except OSError:
            return
        if not piece:
            return
        left -= len(piece)


def shut_down(connection: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """End a connection from any thread: whoever reads from it wakes up."""
    with contextlib.suppress(OSError):  # it is closed already
        # Not SSLSocket's own: that would take TLS away from the thread that reads, which would go on in plain text.
        socket.socket.shutdown(connection, how)
