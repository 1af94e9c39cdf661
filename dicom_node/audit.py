"""Audit events: what PS3.15 A.5.3 wants said of each. Nothing here does I/O; `audit_xml` writes them.

Fields: M of the tables of A.5.3 are all there, U only where a reader gains. Codes: PS3.16 CID 400 to 404. The name of a
patient is nowhere: the Patient ID says who it is, to those who may know.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Action(StrEnum):
    """What was done (EventActionCode)."""

    CREATE = "C"
    """Of transferred instances: the receiver had none of them."""
    READ = "R"
    """Of transferred instances: the receiver had them, or it is not known whether it had."""
    UPDATE = "U"
    """Of transferred instances: the receiver had others of these UIDs."""
    DELETE = "D"
    """It is gone."""
    EXECUTE = "E"
    """A function of the system was used."""


class Outcome(IntEnum):
    """How it ended (EventOutcomeIndicator, PS3.15 table A.5.2-1)."""

    SUCCESS = 0
    """Done."""
    MINOR_FAILURE = 4
    """It was prevented, or may be tried again."""
    SERIOUS_FAILURE = 8
    """It was given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """A coded value."""

    value: str
    meaning: str
    scheme: str = "DCM"


APPLICATION_ACTIVITY = Code(value="110100", meaning="Application Activity")
BEGIN_TRANSFERRING = Code(value="110102", meaning="Begin Transferring DICOM Instances")
INSTANCES_TRANSFERRED = Code(value="110104", meaning="DICOM Instances Transferred")
STUDY_DELETED = Code(value="110105", meaning="DICOM Study Deleted")
SECURITY_ALERT = Code(value="110113", meaning="Security Alert")
USER_AUTHENTICATION = Code(value="110114", meaning="User Authentication")

APPLICATION_START = Code(value="110120", meaning="Application Start")
APPLICATION_STOP = Code(value="110121", meaning="Application Stop")
LOGIN = Code(value="110122", meaning="Login")
NODE_AUTHENTICATION = Code(value="110126", meaning="Node Authentication")

APPLICATION = Code(value="110150", meaning="Application")
DESTINATION = Code(value="110152", meaning="Destination Role ID")
SOURCE = Code(value="110153", meaning="Source Role ID")

STUDY_UID = Code(value="110180", meaning="Study Instance UID")
SOP_CLASS_UID = Code(value="110181", meaning="SOP Class UID")
NODE_ID = Code(value="110182", meaning="Node ID")
PATIENT_NUMBER = Code(value="2", scheme="RFC-3881", meaning="Patient Number")

NO_PATIENT_ID = "<none>"
"""Stands for the Patient ID of a data set that has none."""
WITHHELD = "<withheld>"
"""Stands for every Patient ID where the configuration wants none in the audit trail."""

_PERSON, _SYSTEM = "1", "2"  # ParticipantObjectTypeCode
_PATIENT, _REPORT, _SECURITY_RESOURCE = "1", "3", "13"  # ParticipantObjectTypeCodeRole


@dataclass(frozen=True, kw_only=True, slots=True)
class Application:
    """A DICOM application, of this node or of a peer."""

    ae_title: str
    address: str
    """IP address or host name; empty: not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Someone who uses the node."""

    user: str
    """Their name for this system."""
    address: str
    """Where from: IP address or host name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyContent:
    """Instances of one study and one patient."""

    study_uid: str
    patient_id: str
    """Empty: the data set has none."""
    num_instances: Mapping[str, int] = field(default_factory=dict)
    """By SOP Class UID; empty: not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Participant:
    """Who took part: an application or a person."""

    who: Application | Person
    is_requestor: bool
    role: Code | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Object:
    """What it was about."""

    id: str
    id_type: Code
    type: str
    role: str
    name: str = ""
    details: Mapping[str, bytes] = field(default_factory=dict)
    num_instances: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One message, but for its time and who reports it."""

    id: Code
    action: Action
    outcome: Outcome = Outcome.SUCCESS
    description: str = ""
    type: Code | None = None
    participants: tuple[Participant, ...]
    objects: tuple[Object, ...] = ()


Audit = Callable[[Event], None]
"""Takes an event into the audit trail; never raises."""


def unaudited(_event: Event) -> None:
    """Take an event into no audit trail: of a part of the node that a test runs alone."""


def node_started(node: Application) -> Event:
    """Return the message of a node that begins to serve (A.5.3.1)."""
    return _activity(node, APPLICATION_START)


def node_stopped(node: Application) -> Event:
    """Return the message of a node that was told to end (A.5.3.1)."""
    return _activity(node, APPLICATION_STOP)


def transfer_begun(source: Application, destination: Application, content: StudyContent, *, pulled: bool) -> Event:
    """Return the message of instances that start to come or go (A.5.3.3); `pulled`: the destination asked for them."""
    return Event(
        id=BEGIN_TRANSFERRING,
        action=Action.EXECUTE,
        participants=_ends(source, destination, pulled=pulled),
        objects=_study_and_patient(content),
    )


def transferred(
    source: Application,
    destination: Application,
    content: StudyContent,
    action: Action,
    outcome: Outcome = Outcome.SUCCESS,
    *,
    pulled: bool = False,
) -> Event:
    """Return the message of instances that came or went (A.5.3.7); of what was sent the action is READ."""
    return Event(
        id=INSTANCES_TRANSFERRED,
        action=action,
        outcome=outcome,
        participants=_ends(source, destination, pulled=pulled),
        objects=_study_and_patient(content),
    )


def study_deleted(node: Application, content: StudyContent) -> Event:
    """Return the message of images that the node removed (A.5.3.8)."""
    return Event(
        id=STUDY_DELETED,
        action=Action.DELETE,
        participants=(Participant(who=node, is_requestor=True),),
        objects=_study_and_patient(content),
    )


def peer_refused(node: Application, caller: Application, why: str) -> Event:
    """Return the alert of a peer that is not who may come in (A.5.3.11): unknown, or without a good certificate."""
    alert = Object(
        id=caller.address,
        id_type=NODE_ID,
        type=_SYSTEM,
        role=_SECURITY_RESOURCE,
        name=caller.ae_title,
        details={"Alert Description": why.encode()},
    )
    return Event(
        id=SECURITY_ALERT,
        action=Action.EXECUTE,
        outcome=Outcome.MINOR_FAILURE,  # what kept it out was effective
        description=why,
        type=NODE_AUTHENTICATION,
        participants=(Participant(who=node, is_requestor=True), Participant(who=caller, is_requestor=False)),
        objects=(alert,),
    )


def user_authentication(node: Application, person: Person, outcome: Outcome = Outcome.SUCCESS) -> Event:
    """Return the message of someone who came in, or was not let in (A.5.3.12)."""
    return Event(
        id=USER_AUTHENTICATION,
        action=Action.EXECUTE,
        outcome=outcome,
        type=LOGIN,
        participants=(Participant(who=person, is_requestor=True), Participant(who=node, is_requestor=False)),
    )


def _activity(node: Application, what: Code) -> Event:
    return Event(
        id=APPLICATION_ACTIVITY,
        action=Action.EXECUTE,
        type=what,
        participants=(Participant(who=node, is_requestor=False, role=APPLICATION),),
    )


def _ends(source: Application, destination: Application, *, pulled: bool) -> tuple[Participant, Participant]:
    return (
        Participant(who=source, is_requestor=not pulled, role=SOURCE),
        Participant(who=destination, is_requestor=pulled, role=DESTINATION),
    )


def _study_and_patient(content: StudyContent) -> tuple[Object, Object]:
    return (
        Object(
            id=content.study_uid,
            id_type=STUDY_UID,
            type=_SYSTEM,
            role=_REPORT,
            num_instances=content.num_instances,
        ),
        Object(id=content.patient_id or NO_PATIENT_ID, id_type=PATIENT_NUMBER, type=_PERSON, role=_PATIENT),
    )
