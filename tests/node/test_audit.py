"""Every audit message is valid by the schema of the standard, says what PS3.15 A.5.3 wants, and is one line."""

import base64
import string
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from pydicom.sr._concepts_dict import concepts

from dicom_node import audit
from dicom_node.audit import Action, Application, Event, Outcome, Person, StudyContent
from dicom_node.audit_xml import to_xml

SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).parents[1] / "data" / "audit" / "audit-message.rng"))

NODE = Application(ae_title="ECHONODE", address="echo.hospital.example")
CART = Application(ae_title="CART", address="10.0.0.7")
NURSE = Person(user="nurse", address="10.0.0.9")
CONTENT = StudyContent(study_uid="1.2.3", patient_id="4711", num_instances={"1.2.840.10008.5.1.4.1.1.3.1": 12})
SOME = StudyContent(study_uid="1.2.3", patient_id="")
AT = datetime(2026, 3, 1, 12, 30, 1, 250_000, tzinfo=UTC)

EVENTS = {
    "start": audit.node_started(NODE),
    "stop": audit.node_stopped(NODE),
    "begin": audit.transfer_begun(CART, NODE, SOME, pulled=False),
    "begin of a pull": audit.transfer_begun(CART, NODE, SOME, pulled=True),
    "received": audit.transferred(CART, NODE, CONTENT, Action.CREATE),
    "not kept": audit.transferred(CART, NODE, CONTENT, Action.CREATE, Outcome.MINOR_FAILURE),
    "sent": audit.transferred(NODE, CART, CONTENT, Action.READ),
    "deleted": audit.study_deleted(NODE, CONTENT),
    "stranger": audit.peer_refused(NODE, CART, "who is this"),
    "login": audit.user_authentication(NODE, NURSE),
    "failed login": audit.user_authentication(NODE, NURSE, Outcome.MINOR_FAILURE),
}


def written(event: Event, *, site: str = "", has_patient_ids: bool = True) -> etree._Element:
    """Return the message as a tree, valid by the schema."""
    xml = to_xml(event, source="ECHONODE", site=site, at=AT, has_patient_ids=has_patient_ids)
    tree = etree.fromstring(xml)
    SCHEMA.assertValid(tree)
    assert b"\n" not in xml
    assert b"\r" not in xml
    return tree


def attributes(tree: etree._Element, path: str) -> list[Mapping[str, str]]:
    """Return the attributes of the elements there."""
    return [dict(element.attrib) for element in tree.findall(path)]


@pytest.mark.parametrize("name", EVENTS)
def test_every_kind_of_message_is_valid_by_the_schema_of_the_standard(name: str) -> None:
    tree = written(EVENTS[name], site="General")

    assert attributes(tree, "AuditSourceIdentification") == [
        {"AuditEnterpriseSiteID": "General", "AuditSourceID": "ECHONODE"}
    ]
    assert tree.find("EventIdentification").get("EventDateTime") == "2026-03-01T12:30:01.250+00:00"


def test_the_schema_refuses_what_is_no_message() -> None:
    """Else the test above would say nothing. Earlier editions of the standard had `code`."""
    tree = written(EVENTS["received"])
    event_id = tree.find("EventIdentification/EventID")
    event_id.set("code", event_id.attrib.pop("csd-code"))

    assert not SCHEMA.validate(tree)


def test_every_code_is_the_standard_s() -> None:
    """PS3.16 CID 400 to 404, as pydicom has them; the number of a patient is RFC 3881's."""
    ours = {
        one.value: one.meaning for one in vars(audit).values() if isinstance(one, audit.Code) and one.scheme == "DCM"
    }
    known = {value: meaning for named in concepts["DCM"].values() for value, (meaning, _) in named.items()}  # type: ignore[attr-defined]

    assert len(ours) > 15
    assert ours == {value: known[value] for value in ours}


def test_received_instances_name_source_destination_study_and_patient() -> None:
    """PS3.15 table A.5.3.7-1."""
    tree = written(EVENTS["received"])

    head = tree.find("EventIdentification")
    assert (head.get("EventActionCode"), head.get("EventOutcomeIndicator")) == ("C", "0")
    assert head.find("EventID").get("csd-code") == "110104"
    assert attributes(tree, "ActiveParticipant") == [
        {
            "UserID": "CART",
            "AlternativeUserID": "AETITLES=CART",
            "UserIsRequestor": "true",
            "NetworkAccessPointID": "10.0.0.7",
            "NetworkAccessPointTypeCode": "2",
        },
        {
            "UserID": "ECHONODE",
            "AlternativeUserID": "AETITLES=ECHONODE",
            "UserIsRequestor": "false",
            "NetworkAccessPointID": "echo.hospital.example",
            "NetworkAccessPointTypeCode": "1",
        },
    ]
    assert [role.get("csd-code") for role in tree.findall("ActiveParticipant/RoleIDCode")] == ["110153", "110152"]
    assert attributes(tree, "ParticipantObjectIdentification") == [
        {"ParticipantObjectID": "1.2.3", "ParticipantObjectTypeCode": "2", "ParticipantObjectTypeCodeRole": "3"},
        {"ParticipantObjectID": "4711", "ParticipantObjectTypeCode": "1", "ParticipantObjectTypeCodeRole": "1"},
    ]
    assert attributes(tree, "ParticipantObjectIdentification/ParticipantObjectDescription/SOPClass") == [
        {"UID": "1.2.840.10008.5.1.4.1.1.3.1", "NumberOfInstances": "12"}
    ]


@pytest.mark.parametrize(
    ("name", "event", "kind", "action", "outcome", "requestors"),
    [
        ("start", "110100", "110120", "E", "0", ["false"]),
        ("stop", "110100", "110121", "E", "0", ["false"]),
        ("begin", "110102", None, "E", "0", ["true", "false"]),
        ("begin of a pull", "110102", None, "E", "0", ["false", "true"]),
        ("not kept", "110104", None, "C", "4", ["true", "false"]),
        ("sent", "110104", None, "R", "0", ["true", "false"]),
        ("deleted", "110105", None, "D", "0", ["true"]),
        ("stranger", "110113", "110126", "E", "4", ["true", "false"]),
        ("login", "110114", "110122", "E", "0", ["true", "false"]),
        ("failed login", "110114", "110122", "E", "4", ["true", "false"]),
    ],
)
def test_a_message_has_the_codes_of_its_table(
    name: str, event: str, kind: str | None, action: str, outcome: str, requestors: list[str]
) -> None:
    """Tables A.5.3.1-1 to A.5.3.12-1: event, type, action; and at most one participant asked for it (A.5.2)."""
    tree = written(EVENTS[name])
    head = tree.find("EventIdentification")
    types = [code.get("csd-code") for code in head.findall("EventTypeCode")]

    assert (head.find("EventID").get("csd-code"), types) == (event, [kind] if kind else [])
    assert (head.get("EventActionCode"), head.get("EventOutcomeIndicator")) == (action, outcome)
    assert [one.get("UserIsRequestor") for one in tree.findall("ActiveParticipant")] == requestors


def test_an_alert_says_what_is_wrong_about_which_node() -> None:
    """Table A.5.3.11-1: Node ID, and an Alert Description."""
    (alert,) = written(EVENTS["stranger"]).findall("ParticipantObjectIdentification")
    detail = alert.find("ParticipantObjectDetail")

    assert alert.get("ParticipantObjectID") == "10.0.0.7"
    assert alert.find("ParticipantObjectIDTypeCode").get("csd-code") == "110182"
    assert (detail.get("type"), base64.b64decode(detail.get("value"))) == ("Alert Description", b"who is this")


@pytest.mark.parametrize("name", ["received", "deleted", "sent"])
def test_patient_ids_are_withheld_where_the_configuration_says_so(name: str) -> None:
    tree = written(EVENTS[name], has_patient_ids=False)

    assert tree.findall("ParticipantObjectIdentification")[1].get("ParticipantObjectID") == audit.WITHHELD
    assert b"4711" not in etree.tostring(tree)


def test_a_patient_without_an_id_is_named_as_such() -> None:
    """The table wants one patient in the message, always."""
    tree = written(EVENTS["begin"])

    assert tree.findall("ParticipantObjectIdentification")[1].get("ParticipantObjectID") == audit.NO_PATIENT_ID


ANY_TEXT = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="<>&\"'\n\r\t\0\x0b\x7f\x85\u2028\ufffe\U0001f600" + string.ascii_letters, max_size=40),
    st.text(alphabet=st.characters(categories=["Cs", "Cc", "Cn"]), max_size=10),  # surrogates as well
)


@given(patient=ANY_TEXT, ae_title=ANY_TEXT, user=ANY_TEXT, site=ANY_TEXT)
def test_no_text_makes_a_message_that_is_no_xml_or_two_lines(patient: str, ae_title: str, user: str, site: str) -> None:
    """Whatever a peer or a browser sends; what XML can say is said as it is."""
    peer = Application(ae_title=ae_title, address="10.0.0.7")
    received = audit.transferred(peer, NODE, StudyContent(study_uid="1.2", patient_id=patient), Action.CREATE)
    tree = written(received, site=site)
    written(audit.peer_refused(NODE, peer, "unknown"), site=site)
    written(audit.user_authentication(NODE, Person(user=user, address=user)), site=site)

    said = tree.findall("ParticipantObjectIdentification")[1].get("ParticipantObjectID")
    if patient and patient.isprintable() and "\ufffe" not in patient:
        assert said == patient
    assert len(said) == len(patient) or not patient
