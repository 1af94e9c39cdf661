"""A syslog receiver: over TLS with frames of RFC 5425, or over UDP with a datagram a message."""

import contextlib
import re
import socket
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tests.doubles.certificates import Credentials

_HEADER = re.compile(
    rb"<(?P<pri>\d+)>1 (?P<time>\S+) (?P<host>\S+) (?P<app>\S+) (?P<process>\S+) (?P<id>\S+) - \xef\xbb\xbf(?P<xml>.*)",
    re.DOTALL,
)


class SyslogMessage:
    """A message, taken apart as RFC 5424 says."""

    def __init__(self, content: bytes) -> None:
        found = _HEADER.fullmatch(content)
        assert found is not None, content
        self.priority = int(found["pri"])
        self.time = found["time"].decode()
        self.msgid = found["id"].decode()
        self.xml: bytes = found["xml"]


class TlsSyslog:
    """Listens for connections and remembers every whole frame, in order."""

    def __init__(
        self, certificate: Credentials, port: int = 0, trusted: Path | None = None, *, is_deaf: bool = False
    ) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.certificate, certificate.key)
        if trusted is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(trusted)
        self._listening = socket.create_server(("127.0.0.1", port))
        if is_deaf:  # its machine takes next to nothing
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self._connection: ssl.SSLSocket | None = None
        self.port = int(self._listening.getsockname()[1])
        self.messages: list[SyslogMessage] = []
        self.num_ended = 0
        """Connections that are over, or never were one."""
        self._is_deaf = is_deaf
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self.hang_up()
        self._thread.join()
        self._listening.close()

    def hang_up(self) -> None:
        """End every connection, as a receiver that restarts does."""
        if self._connection is not None:
            with contextlib.suppress(OSError):  # it is over
                self._connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listening.accept()
            except OSError:
                return
            try:
                self._connection = connection = self._context.wrap_socket(raw, server_side=True)
                self._read(connection)
            except OSError:
                raw.close()
            self.num_ended += 1

    def _read(self, connection: ssl.SSLSocket) -> None:
        if self._is_deaf:
            self._end.wait()
        with connection, connection.makefile("rb") as stream:
            while length := _frame_length(stream):
                content = stream.read(length)
                if len(content) == length:
                    self.messages.append(SyslogMessage(content))


def _frame_length(stream: IO[bytes]) -> int:
    """Return the length of the next frame; 0: there is none."""
    digits = stream.read(1)
    while digits[-1:].isdigit():
        digits += stream.read(1)
    return int(digits) if digits.endswith(b" ") else 0


class UdpSyslog:
    """Takes datagrams."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(20)
        self.port = int(self._socket.getsockname()[1])

    def take(self) -> SyslogMessage:
        """Return the next message."""
        return SyslogMessage(self._socket.recv(1 << 16))

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()
