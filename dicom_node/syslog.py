"""Syslog for audit messages: the header of RFC 5424, and the ways to a receiver over UDP (RFC 5426) and TLS (RFC 5425).

PS3.15 A.6 and A.7. Over TLS nothing is acknowledged (RFC 5425 has no such thing): a batch counts as sent once the
receiver's machine has all of it and the receiver has not hung up.
"""

import contextlib
import fcntl
import re
import socket
import ssl
import struct
import termios
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree as ET

from dicom_node.errors import ConfigurationError, DamagedMessage
from dicom_node.settings import AuditSection, parse_receiver

PATIENCE = timedelta(seconds=5)
"""How long the receiver may take to connect, and to take a batch."""

_FACILITY = 10  # security/authorization, PS3.15 A.6
_NOTICE, _WARNING = 5, 4
_MSGID = "DICOM+RFC3881"  # PS3.15 A.6
_APP_NAME = "echo-ai-node"
_BOM = b"\xef\xbb\xbf"  # RFC 5424 6.4
_MAX_DATAGRAM = 65507
_POLL_SECONDS = 0.005


class Receiver(Protocol):
    """Takes syslog messages."""

    def send(self, messages: Sequence[bytes]) -> None:
        """Send a batch, in order.

        Raises:
            OSError: the receiver is out of reach; it may have some of the batch.
        """

    def close(self) -> None:
        """End the connection, if there is one."""


def syslog_message(audit_message: bytes) -> bytes:
    """Return an AuditMessage with the header that RFC 5424 and PS3.15 A.6 want.

    Raises:
        DamagedMessage: it is none.
    """
    try:
        head = ET.fromstring(audit_message).find("EventIdentification")
    except ET.ParseError as error:
        raise DamagedMessage(f"no XML: {error}") from error
    if head is None:
        raise DamagedMessage("no AuditMessage")
    severity = _NOTICE if head.get("EventOutcomeIndicator") == "0" else _WARNING
    host = re.sub(r"[^\x21-\x7e]", "", socket.gethostname()) or "-"
    header = f"<{_FACILITY * 8 + severity}>1 {head.get('EventDateTime')} {host} {_APP_NAME} - {_MSGID} - "
    return header.encode() + _BOM + audit_message


def make_receiver(settings: AuditSection) -> Receiver:
    """Return the receiver that the settings name."""
    scheme, host, port = parse_receiver(settings.syslog)
    return UdpReceiver(host, port) if scheme == "udp" else TlsReceiver(host, port, settings)


class UdpReceiver:
    """A datagram a message; whether one arrives, nobody knows."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None

    def send(self, messages: Sequence[bytes]) -> None:
        """Send a batch, in order.

        Raises:
            OSError: the name is not known, or the receiver's machine says that nobody listens.
        """
        try:
            opened = self._socket = self._socket or self._open()
            for message in messages:
                opened.send(message[:_MAX_DATAGRAM])  # A.7: a longer one is cut off
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> socket.socket:
        family, kind, protocol, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
        opened = socket.socket(family, kind, protocol)
        opened.connect(address)  # so that an ICMP error is heard, at the next message
        return opened


class TlsReceiver:
    """A connection over TLS that stays open, each message with its length before it."""

    def __init__(self, host: str, port: int, settings: AuditSection) -> None:
        self._address = (host, port)
        self._settings = settings
        self._socket: ssl.SSLSocket | None = None

    def send(self, messages: Sequence[bytes]) -> None:
        """Send a batch, in order.

        Raises:
            OSError: there is no connection, its certificate is not trusted, or the receiver took not all.
        """
        try:
            if self._socket is not None and _has_hung_up(self._socket):
                self.close()
            opened = self._socket = self._socket or self._open()
            opened.sendall(b"".join(b"%d %b" % (len(message), message) for message in messages))
            _wait_until_taken(opened)
        except OSError:
            self._drop()
            raise

    def close(self) -> None:
        """End the connection, with a farewell."""
        if self._socket is not None:
            with contextlib.suppress(OSError, ValueError):  # the receiver may be gone
                self._socket.settimeout(PATIENCE.total_seconds())
                self._socket.unwrap()
        self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> ssl.SSLSocket:
        context = _context(self._settings)
        raw = socket.create_connection(self._address, timeout=PATIENCE.total_seconds())
        try:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return context.wrap_socket(raw, server_hostname=self._address[0])
        except OSError:
            raw.close()
            raise


def check(settings: AuditSection) -> None:
    """Say what is wrong with the files of [audit]; a worker, which has the same configuration, needs none of them.

    Raises:
        ConfigurationError: one is missing, or not what it should be.
    """
    for name in ("ca", "certificate", "key"):
        path = getattr(settings, name)
        if path and not Path(path).is_file():
            raise ConfigurationError(f"audit.{name}: no file {path}")
    try:
        _context(settings)
    except (ssl.SSLError, OSError) as error:
        raise ConfigurationError(
            f"audit: ca, certificate and key must be PEM files that fit together, the key without a password: {error}"
        ) from error


def _context(settings: AuditSection) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # PS3.15 A.6
    if settings.certificate:
        context.load_cert_chain(settings.certificate, settings.key or None, password="")  # else it is asked for
    return context


def _has_hung_up(opened: ssl.SSLSocket) -> bool:
    """Return whether the receiver has ended the connection; it never sends anything (RFC 5425)."""
    opened.settimeout(0)
    try:
        return not opened.recv(1)
    except ssl.SSLWantReadError:
        return False
    except OSError:
        return True
    finally:
        opened.settimeout(PATIENCE.total_seconds())


def _wait_until_taken(opened: ssl.SSLSocket) -> None:
    """Return when the receiver's machine has acknowledged every byte and the receiver is still there."""
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while _num_unacknowledged(opened):
        if time.monotonic() > deadline:
            raise TimeoutError("the receiver takes nothing")
        time.sleep(_POLL_SECONDS)
    if _has_hung_up(opened):
        raise ConnectionResetError("the receiver hung up")


def _num_unacknowledged(opened: socket.socket) -> int:
    answer = fcntl.ioctl(opened.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")  # SIOCOUTQ, tcp(7)
    return int(struct.unpack("i", answer)[0])
