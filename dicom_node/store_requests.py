"""C-STORE requests as all peers send them: read, and answered with Success, without an object for each element.

pynetdicom decodes a command set into a data set, that into a message, and that into a primitive, each with checks of
its own: more work than keeping a still image. What is not of the usual shape is left to it.
"""

import struct
from dataclasses import dataclass

from dicom_node.errors import InvalidUID
from dicom_node.identity import UID, is_standard_uid, parse_uid

_ELEMENT = struct.Struct("<HHL")  # PS3.7 6.3.1: implicit VR little endian
_US, _UL = struct.Struct("<H"), struct.Struct("<L")
_LENGTH, _SOP_CLASS, _COMMAND, _MESSAGE_ID = 0x0000, 0x0002, 0x0100, 0x0110
_PRIORITY, _DATA_SET, _STATUS, _SOP_INSTANCE = 0x0700, 0x0800, 0x0900, 0x1000
_MOVE_SENDER, _MOVE_MESSAGE_ID = 0x1030, 0x1031
_RESPONDED_TO = 0x0120
_C_STORE_RQ, _C_STORE_RSP = 0x0001, 0x8001
_NO_DATA_SET = 0x0101
_SUCCESS = 0x0000
_ALWAYS = {_LENGTH, _SOP_CLASS, _COMMAND, _MESSAGE_ID, _PRIORITY, _DATA_SET, _SOP_INSTANCE}  # PS3.7 table 9.3-1
_SOMETIMES = {_MOVE_SENDER, _MOVE_MESSAGE_ID}
_OF_TWO_BYTES = (_COMMAND, _MESSAGE_ID, _PRIORITY, _DATA_SET)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreRequest:
    """The command of a C-STORE request."""

    context_id: int
    message_id: int
    sop_class: UID
    sop_instance: UID


@dataclass(frozen=True, kw_only=True, slots=True)
class Success:
    """The response that the instance of a request is kept."""

    request: StoreRequest


def store_request(context_id: int, command: bytes) -> StoreRequest | None:
    """Return what a command set asks for; None: no C-STORE, or not of the usual shape."""
    found = _elements(command)
    if found is None or not _ALWAYS <= found.keys() <= _ALWAYS | _SOMETIMES:
        return None
    if len(found[_LENGTH]) != _UL.size or _UL.unpack(found[_LENGTH])[0] != len(command) - _ELEMENT.size - _UL.size:
        return None
    if any(len(found[one]) != _US.size for one in _OF_TWO_BYTES):
        return None
    kind, message_id, _, data_set = (_US.unpack(found[one])[0] for one in _OF_TWO_BYTES)
    sop_class, sop_instance = _uid(found[_SOP_CLASS]), _uid(found[_SOP_INSTANCE])
    if kind != _C_STORE_RQ or data_set == _NO_DATA_SET or sop_class is None or sop_instance is None:
        return None
    return StoreRequest(context_id=context_id, message_id=message_id, sop_class=sop_class, sop_instance=sop_instance)


def stored(request: StoreRequest) -> bytes:
    """Return the command set of the response with status Success (PS3.7 table 9.3-2)."""
    elements = b"".join(
        (
            _element(_SOP_CLASS, _padded(request.sop_class)),
            _element(_COMMAND, _US.pack(_C_STORE_RSP)),
            _element(_RESPONDED_TO, _US.pack(request.message_id)),
            _element(_DATA_SET, _US.pack(_NO_DATA_SET)),
            _element(_STATUS, _US.pack(_SUCCESS)),
            _element(_SOP_INSTANCE, _padded(request.sop_instance)),
        )
    )
    return _element(_LENGTH, _UL.pack(len(elements))) + elements


def _elements(command: bytes) -> dict[int, bytes] | None:
    """Return the values of group 0000 by their element numbers; None: they do not ascend, or do not fit."""
    found: dict[int, bytes] = {}
    position, last = 0, -1
    while position < len(command):
        if position + _ELEMENT.size > len(command):
            return None
        group, element, length = _ELEMENT.unpack_from(command, position)
        start = position + _ELEMENT.size
        position = start + length
        if group != 0 or element <= last or position > len(command):
            return None
        found[element], last = command[start:position], element
    return found


def _uid(value: bytes) -> UID | None:
    """Return a UID that every library takes for one."""
    try:
        uid = parse_uid(value.decode("ascii"))
    except (InvalidUID, UnicodeDecodeError):
        return None
    return uid if is_standard_uid(uid) else None


def _padded(uid: UID) -> bytes:
    encoded = uid.encode("ascii")
    return encoded + b"\0" * (len(encoded) % 2)


def _element(element: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0x0000, element, len(value)) + value
