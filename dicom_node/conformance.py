"""The DICOM conformance statement, in the order of PS3.2 annex N: tables from the code that negotiates, and words.

`docs/conformance.md` is what `dicom-node conformance` prints. The words stand in `conformance.md.jinja`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from typing import TypedDict

import pynetdicom  # noqa: F401  # it adds the names of UIDs that are newer than pydicom's table
from jinja2 import Environment, StrictUndefined
from pydicom.uid import UID as PydicomUID

from dicom_node import scp
from dicom_node.services import (
    FIND,
    GET,
    MOVE,
    PLAIN,
    SENT,
    STORAGE_COMMITMENT,
    TAKEN_FOR_STORAGE,
    UNCOMPRESSED,
    VERIFICATION,
)
from dicom_node.settings import Node
from dicom_node.sop_classes import STORED, TRANSFER_SYNTAXES, Decoding, Handling, TransferSyntax

_TEMPLATE = "conformance.md.jinja"
_STORAGE = "Storage"
_COMMITMENT = "Storage Commitment"


class Role(StrEnum):
    """A side of a service."""

    SCU = "SCU"
    SCP = "SCP"


class Function(StrEnum):
    """What the node does with the instances of a storage class (PS3.2 table N.1-1)."""

    CREATE = "create"
    PROCESS = "process"
    STORE = "store for a time"


@dataclass(frozen=True, kw_only=True, slots=True)
class Supported:
    """A SOP class in a role."""

    service: str
    role: Role
    uid: str
    """Of the SOP class."""
    transfer_syntaxes: tuple[PydicomUID, ...] | None
    """None: any."""
    function: Function | None = None
    """Of a storage class."""

    @property
    def name(self) -> str:
        """Return the name of the SOP class in PS3.6."""
        uid = PydicomUID(self.uid)
        return f"{uid.name} (retired)" if uid.is_retired else uid.name


class SupportedJson(TypedDict):
    """A SOP class in a role, for programs."""

    service: str
    role: str
    sop_class_uid: str
    sop_class: str
    transfer_syntax_uids: list[str] | None


class ConformanceJson(TypedDict):
    """The tables of the statement, for programs."""

    implementation_class_uid: str
    implementation_version_name: str
    supported: list[SupportedJson]
    decoded_transfer_syntax_uids: list[str]


def supported() -> Iterator[Supported]:
    """Yield each SOP class in each role in which the node negotiates it; other storage classes are as those listed."""
    yield Supported(service="Verification", role=Role.SCP, uid=VERIFICATION, transfer_syntaxes=UNCOMPRESSED)
    yield Supported(service="Verification", role=Role.SCU, uid=VERIFICATION, transfer_syntaxes=PLAIN)
    for stored in STORED:
        function = Function.PROCESS if stored.handling is Handling.ANALYSED else Function.STORE
        yield Supported(service=_STORAGE, role=Role.SCP, uid=stored.uid, transfer_syntaxes=None, function=function)
    for uid, syntaxes in SENT.items():
        yield Supported(service=_STORAGE, role=Role.SCU, uid=uid, transfer_syntaxes=syntaxes, function=Function.CREATE)
    yield Supported(service=_COMMITMENT, role=Role.SCP, uid=STORAGE_COMMITMENT, transfer_syntaxes=UNCOMPRESSED)
    yield Supported(service=_COMMITMENT, role=Role.SCU, uid=STORAGE_COMMITMENT, transfer_syntaxes=PLAIN)
    for uid in (FIND, MOVE, GET):
        yield Supported(service="Query/Retrieve", role=Role.SCU, uid=uid, transfer_syntaxes=PLAIN)


def tables() -> ConformanceJson:
    """Return the tables for programs; `transfer_syntax_uids` is null where any is taken."""
    return ConformanceJson(
        implementation_class_uid=scp.IMPLEMENTATION_CLASS_UID,
        implementation_version_name=scp.IMPLEMENTATION_VERSION,
        supported=[
            SupportedJson(
                service=one.service,
                role=one.role.value,
                sop_class_uid=one.uid,
                sop_class=one.name,
                transfer_syntax_uids=None if one.transfer_syntaxes is None else [*one.transfer_syntaxes],
            )
            for one in supported()
        ],
        decoded_transfer_syntax_uids=[str(one.uid) for one in _decoded()],
    )


def statement() -> str:
    """Return the whole statement."""
    every = list(supported())
    different = dict.fromkeys(one.transfer_syntaxes for one in every)
    sets = {syntaxes: chr(ord("A") + number) for number, syntaxes in enumerate(different)}
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    template = environment.from_string(files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        implementation_class_uid=scp.IMPLEMENTATION_CLASS_UID,
        implementation_version=scp.IMPLEMENTATION_VERSION,
        sets=sets,
        storage=_by_class(one for one in every if one.service == _STORAGE),
        set_of=lambda lines, role: next((sets[one.transfer_syntaxes] for one in lines if one.role == role), ""),
        others=[one for one in every if one.service != _STORAGE],
        uncompressed=UNCOMPRESSED,
        taken_for_storage=[PydicomUID(uid).name for uid in TAKEN_FOR_STORAGE],
        decoded=_decoded(),
        max_pdu=Node.model_fields["max_pdu"].default,
        idle_seconds=f"{Node.model_fields['idle_seconds'].default:.0f}",
    )


def _by_class(lines: Iterable[Supported]) -> list[list[Supported]]:
    """Return the roles of each SOP class, in the order of their UIDs (PS3.2 table N.1-1)."""
    rows: dict[str, list[Supported]] = {}
    for one in lines:
        rows.setdefault(one.uid, []).append(one)
    return [rows[uid] for uid in sorted(rows, key=lambda uid: [int(part) for part in uid.split(".")])]


def _decoded() -> list[TransferSyntax]:
    return [one for one in TRANSFER_SYNTAXES if one.decoding is not Decoding.NONE]
