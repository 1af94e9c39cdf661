"""Storage Commitment Push Model on the wire (PS3.4 annex J): what one side asks, and what the other reports.

The same two messages go both ways: peers ask the node to commit to their images (`commitment_scp`), the node asks
peers to commit to its reports (`commitment_scu`).
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from io import BytesIO
from types import MappingProxyType
from typing import NamedTuple

from pydicom import Dataset
from pydicom.uid import UID as PydicomUID
from pynetdicom.dsutils import decode, encode

from dicom_node import wire
from dicom_node.errors import InvalidUID, MalformedCommitment
from dicom_node.identity import UID, parse_uid
from dicom_node.report.header import DAMAGE

WELL_KNOWN_INSTANCE = UID("1.2.840.10008.1.20.1.1")
"""PS3.4 J.3.5."""
REQUEST_COMMITMENT = 1
"""The one Action Type (PS3.4 table J.3-1)."""
MAX_INSTANCES = 100_000
"""Of one request; whole archives are not asked for in one message."""

_COMMENT_MAX = 64  # PS3.7 table C-1, LO
_MESSAGE_IDS = itertools.count(1)


class Status(IntEnum):
    """Answers to N-ACTION and N-EVENT-REPORT (PS3.7 10.1.1.1.8 and 10.1.4.1.10)."""

    SUCCESS = 0x0000
    """Taken: what follows from it is safe in the ledger."""
    PROCESSING_FAILURE = 0x0110
    """A mistake of this node."""
    NO_SUCH_INSTANCE = 0x0112
    """Not the well-known instance."""
    NO_SUCH_EVENT = 0x0113
    """Neither of the two events."""
    INVALID_ARGUMENT = 0x0115
    """The list, or the Transaction UID, is missing, damaged, or not what it should be."""
    NO_SUCH_CLASS = 0x0118
    """Not this SOP class."""
    NO_SUCH_ACTION = 0x0123
    """Not a request for commitment."""
    NOT_AUTHORIZED = 0x0124
    """The node commits to nothing: `node.storage_commitment`."""
    RESOURCE_LIMITATION = 0x0213
    """The ledger cannot commit now, or the list is too long."""


class FailureReason(IntEnum):
    """Why an instance is not committed to (PS3.3 C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    """Its file is damaged or lost."""
    NO_SUCH_INSTANCE = 0x0112
    """It is not here, or not any more."""
    CLASS_INSTANCE_CONFLICT = 0x0119
    """It is here with another SOP Class UID."""


class EventType(IntEnum):
    """PS3.4 table J.3-2."""

    SUCCESSFUL = 1
    FAILURES_EXIST = 2


class Reference(NamedTuple):
    """One instance that is asked for."""

    sop_class_uid: UID
    sop_instance_uid: UID


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Action Information: what a peer is asked to commit to (PS3.4 table J.3-1)."""

    transaction_uid: UID
    references: Sequence[Reference]
    """Each instance once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Event Information: what a peer has committed to, and what not (PS3.4 table J.3-2)."""

    transaction_uid: UID
    committed: Sequence[Reference]
    failed: Mapping[Reference, int] = field(default_factory=lambda: MappingProxyType({}))
    """With the failure reasons."""

    @property
    def event_type(self) -> EventType:
        """Return the Event Type ID that fits."""
        return EventType.FAILURES_EXIST if self.failed else EventType.SUCCESSFUL


def message_id() -> int:
    """Return a Message ID that no message of the last while has."""
    return next(_MESSAGE_IDS) % 0xFFFF + 1


def answer(status: Status, comment: str = "") -> Dataset:
    """Return the status of an answer with its Error Comment."""
    content = Dataset()
    content.Status = int(status)
    if comment:
        content.ErrorComment = comment[:_COMMENT_MAX]
    return content


def encode_request(request: Request, transfer_syntax: str) -> BytesIO:
    """Return the Action Information of a request."""
    content = Dataset()
    content.TransactionUID = request.transaction_uid
    content.ReferencedSOPSequence = [_item(one) for one in request.references]
    return _encoded(content, transfer_syntax)


def encode_report(report: Report, transfer_syntax: str) -> BytesIO:
    """Return the Event Information of a report."""
    return _encoded(event_information(report), transfer_syntax)


def event_information(report: Report) -> Dataset:
    """Return the Event Information of a report as a data set."""
    content = Dataset()
    content.TransactionUID = report.transaction_uid
    if report.committed:
        content.ReferencedSOPSequence = [_item(one) for one in report.committed]
    if report.failed:
        content.FailedSOPSequence = [_item(one) for one in report.failed]
        for item, reason in zip(content.FailedSOPSequence, report.failed.values(), strict=True):
            item.FailureReason = int(reason)
    return content


def read_request(content: bytes, transfer_syntax: str) -> Request:
    """Return the request in an Action Information.

    Raises:
        MalformedCommitment: it holds none; the message names what is wrong, without a value.
    """
    dataset = _decoded(content, transfer_syntax)
    references = _references(dataset, "ReferencedSOPSequence")
    if not references:
        raise MalformedCommitment("Referenced SOP Sequence is missing or empty")
    return Request(transaction_uid=_transaction(dataset), references=tuple(references))


def read_report(content: bytes, transfer_syntax: str) -> Report:
    """Return the report in an Event Information.

    Raises:
        MalformedCommitment: it holds none; the message names what is wrong, without a value.
    """
    dataset = _decoded(content, transfer_syntax)
    return Report(
        transaction_uid=_transaction(dataset),
        committed=tuple(_references(dataset, "ReferencedSOPSequence")),
        failed=MappingProxyType(_references(dataset, "FailedSOPSequence")),
    )


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    return item


def _encoded(content: Dataset, transfer_syntax: str) -> BytesIO:
    syntax = PydicomUID(transfer_syntax)
    encoded = encode(content, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    assert encoded is not None  # a data set of our own making
    return BytesIO(encoded)


def _decoded(content: bytes, transfer_syntax: str) -> Dataset:
    syntax = PydicomUID(transfer_syntax)
    try:
        wire.walk(content, transfer_syntax)  # pydicom reads on after damage, and fails at deep nesting
        return decode(BytesIO(content), syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    except (wire.DamagedDataSet, *DAMAGE) as error:
        raise MalformedCommitment("the data set of the message is damaged") from error


def _transaction(dataset: Dataset) -> UID:
    return _uid(_value(dataset, "TransactionUID"), "Transaction UID")


def _references(dataset: Dataset, keyword: str) -> dict[Reference, int]:
    """Return the instances of a sequence with their failure reasons (0: none), each once, in their order."""
    items = _value(dataset, keyword)
    if items is None:
        return {}
    if not isinstance(items, Iterable) or isinstance(items, (str, bytes)):
        raise MalformedCommitment(f"{keyword} is no sequence")
    found = {}
    for item in items:
        if not isinstance(item, Dataset):
            raise MalformedCommitment(f"{keyword} is no sequence")
        reference = Reference(
            _uid(_value(item, "ReferencedSOPClassUID"), "Referenced SOP Class UID"),
            _uid(_value(item, "ReferencedSOPInstanceUID"), "Referenced SOP Instance UID"),
        )
        reason = _value(item, "FailureReason")
        found[reference] = reason if isinstance(reason, int) else 0
    return found


def _value(dataset: Dataset, keyword: str) -> object:
    try:
        return dataset.get(keyword)
    except DAMAGE as error:  # pydicom converts only here
        raise MalformedCommitment(f"{keyword} is damaged") from error


def _uid(value: object, name: str) -> UID:
    try:
        return parse_uid(value)
    except InvalidUID as error:
        raise MalformedCommitment(f"{name} is missing or no UID") from error
