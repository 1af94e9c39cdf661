"""Audit events as XML: the AuditMessage of PS3.15 A.5.1, one line of UTF-8."""

import base64
import ipaddress
import re
from datetime import datetime
from xml.etree import ElementTree as ET

from dicom_node.audit import PATIENT_NUMBER, WITHHELD, Application, Code, Event, Object, Participant

_APPLICATION_SERVER = "4"  # AuditSourceTypeCode, A.5.1.2.1
_MACHINE_NAME, _IP_ADDRESS = "1", "2"  # NetworkAccessPointTypeCode
_NOT_XML = re.compile(r"[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 2.2; no line breaks either


def to_xml(event: Event, *, source: str, site: str, at: datetime, has_patient_ids: bool) -> bytes:
    """Return an event as an AuditMessage: UTF-8, one line.

    Args:
        event: what happened.
        source: AuditSourceID.
        site: AuditEnterpriseSiteID; empty: none.
        at: when, aware.
        has_patient_ids: false puts WITHHELD in the place of each Patient ID.
    """
    message = ET.Element("AuditMessage")
    head = _add(
        message,
        "EventIdentification",
        EventActionCode=event.action,
        EventDateTime=at.isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=str(int(event.outcome)),
    )
    _add_code(head, "EventID", event.id)
    if event.type is not None:
        _add_code(head, "EventTypeCode", event.type)
    if event.description:
        _add(head, "EventOutcomeDescription").text = _clean(event.description)
    for participant in event.participants:
        _add_participant(message, participant)
    reporter = _add(message, "AuditSourceIdentification", AuditSourceID=source)
    if site:
        reporter.set("AuditEnterpriseSiteID", _clean(site))
    _add(reporter, "AuditSourceTypeCode", **{"csd-code": _APPLICATION_SERVER})
    for one in event.objects:
        _add_object(message, one, has_patient_ids)
    content: bytes = ET.tostring(message, encoding="utf-8")
    return content


def _add_participant(message: ET.Element, participant: Participant) -> None:
    who = participant.who
    element = _add(message, "ActiveParticipant")
    if isinstance(who, Application):
        element.set("UserID", _clean(who.ae_title))
        element.set("AlternativeUserID", f"AETITLES={_clean(who.ae_title)}")  # A.5.2.2
    else:
        element.set("UserID", _clean(who.user))
    element.set("UserIsRequestor", str(participant.is_requestor).lower())
    if who.address:
        element.set("NetworkAccessPointID", _clean(who.address))
        element.set("NetworkAccessPointTypeCode", _IP_ADDRESS if _is_ip(who.address) else _MACHINE_NAME)
    if participant.role is not None:
        _add_code(element, "RoleIDCode", participant.role)


def _add_object(message: ET.Element, one: Object, has_patient_ids: bool) -> None:
    is_withheld = one.id_type == PATIENT_NUMBER and not has_patient_ids
    element = _add(
        message,
        "ParticipantObjectIdentification",
        ParticipantObjectID=WITHHELD if is_withheld else one.id,
        ParticipantObjectTypeCode=one.type,
        ParticipantObjectTypeCodeRole=one.role,
    )
    _add_code(element, "ParticipantObjectIDTypeCode", one.id_type)
    _add(element, "ParticipantObjectName").text = _clean(one.name)  # the schema wants it, if empty
    for kind, value in one.details.items():
        _add(element, "ParticipantObjectDetail", type=kind, value=_base64(value))
    if one.num_instances:
        description = _add(element, "ParticipantObjectDescription")
        for sop_class, number in one.num_instances.items():
            _add(description, "SOPClass", UID=sop_class, NumberOfInstances=str(number))


def _add_code(parent: ET.Element, tag: str, code: Code) -> None:
    attributes = {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning}
    _add(parent, tag, **attributes)


def _add(parent: ET.Element, tag: str, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, tag, {name: _clean(value) for name, value in attributes.items()})


def _clean(text: str) -> str:
    """Return the text with a mark for each character that may stand in no XML document, or would break the line."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True
