"""What becomes of a request before pynetdicom serves it: what it would drop in silence, or end an association for, is
answered here (PS3.7).
"""

from collections.abc import Callable, Mapping, Sequence

import structlog
from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import (
    C_ECHO,
    C_FIND,
    C_GET,
    C_MOVE,
    C_STORE,
    N_ACTION,
    N_CREATE,
    N_DELETE,
    N_EVENT_REPORT,
    N_GET,
    N_SET,
    DIMSEPrimitive,
)

from dicom_node.errors import InvalidUID
from dicom_node.identity import UID, parse_uid
from dicom_node.report.header import DAMAGE
from dicom_node.scp import StoreStatus
from dicom_node.services import STORAGE_COMMITMENT, VERIFICATION

log = structlog.get_logger(__name__)

_PRIORITIES = (0, 1, 2)  # PS3.7 table E.1-1
_UNRECOGNISED = 0x0211  # PS3.7 C.5.24: unrecognized operation
_NOT_SUPPORTED = 0x0122  # PS3.7 C.5.6: SOP class not supported
_PRIMITIVES: Mapping[str, type[DIMSEPrimitive]] = {
    one.__name__: one
    for one in (C_STORE, C_FIND, C_GET, C_MOVE, N_ACTION, N_CREATE, N_DELETE, N_EVENT_REPORT, N_GET, N_SET)
}
_COMMAND_UIDS = ("AffectedSOPClassUID", "AffectedSOPInstanceUID")


def on_dimse_message(event: evt.Event, refused: Callable[[int], None] = lambda _status: None) -> None:
    """Answer a request that pynetdicom drops in silence, or for which it aborts the whole association, or worse;
    `refused` hears the status of each C-STORE that is refused here."""
    message = event.message
    kind = type(message).__name__
    number = _number(message.command_set)
    if not kind.endswith("_RQ") or number is None:
        return  # pynetdicom drops it, or ends the association
    message.command_set.MessageID = number
    is_commitment = STORAGE_COMMITMENT in (
        str(one.abstract_syntax) for one in event.assoc.accepted_contexts if one.context_id == message.context_id
    )
    if is_commitment and kind in ("N_ACTION_RQ", "N_EVENT_REPORT_RQ"):
        return  # it has handlers of its own
    if kind == "C_STORE_RQ" and not is_commitment:
        _check_store(event, refused)
    elif kind == "C_ECHO_RQ":
        if message.command_set.get("AffectedSOPClassUID") != VERIFICATION:
            # pynetdicom serves by the SOP class: one of storage would lead to the service of C-STORE.
            log.warning("request_refused", kind=kind)
            _drop(event, C_ECHO(), _NOT_SUPPORTED, "the SOP class of C-ECHO is Verification")
    elif kind != "C_CANCEL_RQ":
        # Else it would call the handler of C-STORE with a C-FIND on a storage context.
        log.warning("request_refused", kind=kind)
        _drop(event, _PRIMITIVES[kind.removesuffix("_RQ")](), _UNRECOGNISED, "the node serves C-STORE and C-ECHO")


def _check_store(event: evt.Event, refused: Callable[[int], None]) -> None:
    command = event.message.command_set
    if command.get("Priority") not in _PRIORITIES:
        command.Priority = 0  # nothing depends on it
    reason = _flaw(command)
    if reason is not None:
        log.warning("instance_refused", status=f"0x{StoreStatus.CANNOT_UNDERSTAND:04X}", reason=reason)
        _drop(event, C_STORE(), StoreStatus.CANNOT_UNDERSTAND, reason)
        refused(StoreStatus.CANNOT_UNDERSTAND)


def _drop(event: evt.Event, response: DIMSEPrimitive, status: int, comment: str) -> None:
    """Answer a request, and take out of it what pynetdicom would serve it by."""
    command, context = event.message.command_set, event.message.context_id
    response.MessageIDBeingRespondedTo = command.MessageID
    response.Status = status
    if isinstance(response, C_STORE):
        response.ErrorComment = comment  # type: ignore[assignment]  # pynetdicom declares it without its type
    for keyword in _COMMAND_UIDS:
        uid = _uid(command.get(keyword))
        if uid is not None and hasattr(response, keyword):
            setattr(response, keyword, uid)
        elif keyword in command:
            del command[keyword]  # pynetdicom ends the association for some; without it, it goes on
    assert context is not None
    event.assoc.dimse.send_msg(response, context)  # type: ignore[arg-type]  # it names each primitive but their base
    del command.MessageID


def _number(command: Dataset) -> int | None:
    """Return the number to answer to, of several the first, as pynetdicom takes it; None: there is none, or an element
    has no value of its kind."""
    try:
        values = {element.keyword: element.value for element in command}
    except DAMAGE:
        return None
    number = values.get("MessageID")
    first = number[0] if isinstance(number, Sequence) and number else number
    return first if isinstance(first, int) else None


def _flaw(command: Dataset) -> str | None:
    for keyword in _COMMAND_UIDS:
        if _uid(command.get(keyword)) is None:
            return f"{keyword} of the command is missing or no UID"
    return None


def _uid(value: object) -> UID | None:
    try:
        return parse_uid(value)
    except InvalidUID:
        return None
