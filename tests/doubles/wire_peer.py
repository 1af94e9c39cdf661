"""A peer that speaks DICOM byte by byte, so that a test may send what no library would; it shares no code with ours."""

import socket
import ssl
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

VERIFICATION = "1.2.840.10008.1.1"
US_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.3.1"
COMMITMENT = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"

DEADLINE = 20.0
"""Seconds that any answer may take on a busy machine."""

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

_COMMAND, _LAST = 1, 2
_C_STORE, _C_ECHO, _N_ACTION = 0x0001, 0x0030, 0x0130


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """What the node answered to a message."""

    status: int
    comment: str
    offending: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the node answered to an association request."""

    rejection: tuple[int, int, int] | None = None
    """Result, source, reason."""
    is_closed: bool = False
    """Aborted, or the connection ended."""
    syntaxes: Mapping[int, str] = field(default_factory=dict)
    """Of the accepted contexts, by their number (1 for the first, 3 for the second...)."""


class WirePeer:
    """One connection to a node."""

    def __init__(
        self,
        port: int,
        called: str = "ECHONODE",
        calling: str = "CART",
        tls: ssl.SSLContext | None = None,
        max_pdu: int = 16384,
    ) -> None:
        self._called, self._calling, self._max_pdu = called, calling, max_pdu
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def request(
        self,
        *contexts: tuple[str, Sequence[str]],
        application_context: str = APPLICATION_CONTEXT,
        protocol_version: int = 1,
    ) -> bytes:
        """Return an A-ASSOCIATE-RQ."""
        items = _item(0x10, application_context.encode())
        for index, (abstract, syntaxes) in enumerate(contexts):
            proposed = b"".join(_item(0x40, syntax.encode()) for syntax in syntaxes)
            items += _item(0x20, bytes((2 * index + 1, 0, 0, 0)) + _item(0x30, abstract.encode()) + proposed)
        items += _item(0x50, _item(0x51, struct.pack(">L", self._max_pdu)) + _item(0x52, b"1.2.826.0.1.77"))
        titles = self._called.ljust(16).encode() + self._calling.ljust(16).encode()
        return _pdu(ASSOCIATE_RQ, struct.pack(">HH", protocol_version, 0) + titles + bytes(32) + items)

    def associate(self, *contexts: tuple[str, Sequence[str]], application_context: str = APPLICATION_CONTEXT) -> Answer:
        """Ask for an association; without contexts: one of ultrasound loops in Explicit VR Little Endian."""
        contexts = contexts or ((US_MULTIFRAME, (EXPLICIT_LITTLE,)),)
        self.socket.sendall(self.request(*contexts, application_context=application_context))
        return self.answer()

    def answer(self) -> Answer:
        """Read what the node says to an association request."""
        kind, content = self.read_pdu()
        if kind == ASSOCIATE_RJ:
            return Answer(rejection=(content[1], content[2], content[3]))
        if kind != ASSOCIATE_AC:
            return Answer(is_closed=True)
        return Answer(syntaxes=_accepted(content[68:]))

    def store(
        self,
        dataset: bytes | None,
        sop_instance: str | None = "1.2.3.4",
        sop_class: str | None = US_MULTIFRAME,
        context: int = 1,
        priority: int | None = 0,
    ) -> Response:
        """Send a C-STORE request and return its answer; None leaves a part out."""
        self.socket.sendall(self.store_message(dataset, sop_instance, sop_class, context, priority))
        return self.response()

    def store_message(
        self,
        dataset: bytes | None,
        sop_instance: str | None = "1.2.3.4",
        sop_class: str | None = US_MULTIFRAME,
        context: int = 1,
        priority: int | None = 0,
    ) -> bytes:
        """Return the PDUs of a C-STORE request."""
        elements = {0x0100: struct.pack("<H", _C_STORE), 0x0110: struct.pack("<H", 7)}
        elements[0x0800] = struct.pack("<H", 0x0101 if dataset is None else 0x0001)
        for element, uid in ((0x0002, sop_class), (0x1000, sop_instance)):
            if uid is not None:
                elements[element] = uid.encode() + b"\0" * (len(uid) % 2)
        if priority is not None:
            elements[0x0700] = struct.pack("<H", priority)
        message = _fragments(_command(elements), context, _COMMAND)
        return message if dataset is None else message + _fragments(dataset, context, 0)

    def echo(self, context: int = 1) -> int:
        """Send a C-ECHO request and return its status."""
        self.socket.sendall(self.echo_message(context))
        return self.response().status

    def echo_message(self, context: int = 1) -> bytes:
        """Return the PDU of a C-ECHO request."""
        elements = {0x0100: struct.pack("<H", _C_ECHO), 0x0110: struct.pack("<H", 9)}
        elements |= {0x0800: struct.pack("<H", 0x0101), 0x0002: VERIFICATION.encode() + b"\0"}
        return _fragments(_command(elements), context, _COMMAND)

    def action(
        self,
        content: bytes,
        sop_class: str | None = COMMITMENT,
        sop_instance: str | None = COMMITMENT_INSTANCE,
        action_type: int | None = 1,
        context: int = 1,
    ) -> Response:
        """Send an N-ACTION request and return its answer; None leaves a part out."""
        elements = {0x0100: struct.pack("<H", _N_ACTION), 0x0110: struct.pack("<H", 11)}
        elements[0x0800] = struct.pack("<H", 0x0001)
        for element, uid in ((0x0003, sop_class), (0x1001, sop_instance)):
            if uid is not None:
                elements[element] = uid.encode() + b"\0" * (len(uid) % 2)
        if action_type is not None:
            elements[0x1008] = struct.pack("<H", action_type)
        self.socket.sendall(_fragments(_command(elements), context, _COMMAND) + _fragments(content, context, 0))
        return self.response()

    def response(self) -> Response:
        """Read the answer to a message.

        Raises:
            ConnectionError: there is none, the association is aborted.
        """
        command = b""
        while True:
            kind, content = self.read_pdu()
            if kind != P_DATA:
                raise ConnectionError(f"PDU of type {kind} instead of an answer")
            length, _, control = struct.unpack_from(">LBB", content)
            command += content[6 : 4 + length]
            if control & _LAST:
                return _response(command)

    def release(self) -> None:
        """End the association in good order."""
        self.socket.sendall(_pdu(RELEASE_RQ, bytes(4)))
        kind, _ = self.read_pdu()
        assert kind == RELEASE_RP

    def read_pdu(self) -> tuple[int, bytes]:
        """Return type and content of the next PDU; type 0: the connection has ended."""
        try:
            header = self._read(6)
            if len(header) < 6:
                return 0, b""
            return header[0], self._read(struct.unpack(">L", header[2:])[0])
        except ConnectionResetError:
            return 0, b""

    def _read(self, num_bytes: int) -> bytes:
        content = b""
        while len(content) < num_bytes and (piece := self.socket.recv(num_bytes - len(content))):
            content += piece
        return content


def p_data(content: bytes, context: int = 1, *, is_command: bool = False, is_last: bool = True) -> bytes:
    """Return one P-DATA PDU with one fragment."""
    control = (_COMMAND if is_command else 0) | (_LAST if is_last else 0)
    return _pdu(P_DATA, struct.pack(">LBB", len(content) + 2, context, control) + content)


def _fragments(content: bytes, context: int, kind: int, size: int = 65536) -> bytes:
    pieces = [content[start : start + size] for start in range(0, len(content), size)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        p_data(piece, context, is_command=kind == _COMMAND, is_last=index == last) for index, piece in enumerate(pieces)
    )


def _command(elements: Mapping[int, bytes]) -> bytes:
    body = b"".join(struct.pack("<HHL", 0, element, len(value)) + value for element, value in sorted(elements.items()))
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _response(command: bytes) -> Response:
    elements: dict[int, bytes] = {}
    position = 0
    while position < len(command):
        _, element, length = struct.unpack_from("<HHL", command, position)
        elements[element] = command[position + 8 : position + 8 + length]
        position += 8 + length
    offending = elements.get(0x0901)
    return Response(
        status=struct.unpack("<H", elements[0x0900])[0],
        comment=elements.get(0x0902, b"").decode("ascii").rstrip(),
        offending=None
        if offending is None
        else int.from_bytes(offending[:2], "little") << 16 | int.from_bytes(offending[2:4], "little"),
    )


def _accepted(items: bytes) -> dict[int, str]:
    accepted = {}
    position = 0
    while position < len(items):
        kind, _, length = struct.unpack_from(">BBH", items, position)
        content = items[position + 4 : position + 4 + length]
        if kind == 0x21 and content[2] == 0:
            accepted[content[0]] = content[8:].decode().rstrip("\0")
        position += 4 + length
    return accepted


def _item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(content)) + content


def _pdu(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(content)) + content
