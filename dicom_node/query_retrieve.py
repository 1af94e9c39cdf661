"""Query/Retrieve SCU, Study Root (PS3.4 annex C): what a study consists of, and two roads for it to come.

What a peer says in its own words is not repeated: it may name the patient.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.association import Association

from dicom_node.errors import InvalidUID, RetrieveError
from dicom_node.identity import UID, parse_uid
from dicom_node.inquiry import Inquiry, inquire
from dicom_node.road import Road
from dicom_node.services import FIND, GET, MOVE, PLAIN
from dicom_node.settings import Node, Peer
from dicom_node.sop_classes import STORED, TRANSFER_SYNTAXES, Decoding, Encoding

MOST_INSTANCES = 100_000
"""Of one study; a peer that names more is not believed."""

_MAX_CONTEXTS = 128  # PS3.8 section 9.3.2.2: odd numbers up to 255
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_WITHOUT_PIXELS = tuple(_STORAGE + part for part in ("88.", "104.", "11.", "9.", "66"))
_PENDING = (0xFF00, 0xFF01)
_SUCCESS = 0x0000

_MEANINGS: Mapping[int, str] = {
    0x0122: "it does not do this for the SOP class",
    0x0124: "it does not allow this to our AE title",
    0xA700: "it is out of resources",
    0xA701: "it is out of resources and could not count what matches",
    0xA702: "it is out of resources and could not send",
    0xA801: "it does not know our AE title as a destination",
    0xA900: "it does not understand the request",
    0xB000: "some instances could not be sent",
    0xFE00: "it cancelled",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What the peer says of a study."""

    instances: Mapping[UID, UID | None]
    """SOP Instance UID -> SOP Class UID, None where the peer does not say it."""
    roads: frozenset[Road]
    """Those that it accepted a presentation context for."""


def find_study(node: Node, peer: Peer, study_uid: UID, patience: timedelta) -> Found:
    """Return the instances of a study and how they can come.

    Raises:
        RetrieveError: the peer does not know the study, or does not say what it consists of.
    """
    with inquire(node, peer, {FIND: PLAIN, GET: PLAIN, MOVE: PLAIN}, patience=patience) as (inquiry, association):
        accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
        if FIND not in accepted:
            raise RetrieveError(f"{peer.name}: takes no Study Root C-FIND from {node.ae_title}")
        query = partial(_query, inquiry, association, peer, study_uid)
        if not query("STUDY", {}):
            raise RetrieveError(f"{peer.name}: knows no study {study_uid}")
        instances: dict[UID, UID | None] = {}
        for series in query("SERIES", {"SeriesInstanceUID": ""}):
            keys = {"SeriesInstanceUID": series.get("SeriesInstanceUID", ""), "SOPInstanceUID": "", "SOPClassUID": ""}
            for one in query("IMAGE", keys):
                uid = _uid(peer, one.get("SOPInstanceUID"))
                instances[uid] = _uid(peer, one.SOPClassUID) if one.get("SOPClassUID") else None
            _check_number(peer, len(instances))
    if not instances:
        raise RetrieveError(f"{peer.name}: names no instance of study {study_uid}")
    roads = {road for road, uid in ((Road.GET, GET), (Road.MOVE, MOVE)) if uid in accepted}
    return Found(instances=instances, roads=frozenset(roads))


def get_study(
    node: Node,
    peer: Peer,
    study_uid: UID,
    classes: Collection[UID | None],
    patience: timedelta,
    on_c_store: Callable[[evt.Event], Dataset],
) -> None:
    """Let the study come over one association of ours, each instance through `on_c_store`.

    Raises:
        RetrieveError: the peer did not send it, or not all of it.
    """
    wanted = sorted({uid for uid in classes if uid is not None}) or [one.uid for one in STORED]
    if None in classes:
        wanted = sorted({*wanted, *(one.uid for one in STORED)})
    proposed = storage_contexts(wanted)
    with inquire(
        node,
        peer,
        {GET: PLAIN, **proposed},
        patience=patience,
        received=list(proposed),
        on_c_store=on_c_store,
    ) as (inquiry, association):
        if GET not in [str(context.abstract_syntax) for context in association.accepted_contexts]:
            raise RetrieveError(f"{peer.name}: takes no Study Root C-GET from {node.ae_title}; try --by move")
        for context in association.accepted_contexts:
            # Real peers accept the context, say nothing of roles and send all the same (pynetdicom #559).
            context._as_scp = context._as_scp or context.abstract_syntax in proposed
        request = partial(association.send_c_get, _identifier("STUDY", study_uid, {}), GET)
        _judge(peer, node, "C-GET", inquiry.await_answer(association, lambda: _final(request())))


def move_study(node: Node, peer: Peer, study_uid: UID, patience: timedelta, look: Callable[[], bool]) -> None:
    """Let the peer send the study to the running node.

    Args:
        node: the destination.
        peer: who sends.
        study_uid: what is sent.
        patience: how long nothing may get on.
        look: whether more has arrived since it was last asked.

    Raises:
        RetrieveError: the peer did not send it, or not all of it.
    """
    with inquire(node, peer, {MOVE: PLAIN}, patience=patience) as (inquiry, association):

        def look_around() -> None:
            if look():
                inquiry.gets_on()

        request = partial(association.send_c_move, _identifier("STUDY", study_uid, {}), node.ae_title, MOVE)
        _judge(peer, node, "C-MOVE", inquiry.await_answer(association, lambda: _final(request()), look_around))


def storage_contexts(classes: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the transfer syntaxes to propose for each class, compressed ones first, as many as an association holds.

    One syntax a context lets the peer send each instance as it holds it: one that had to choose for all would make
    loops of a megabyte ten times as large.
    """
    most = (_MAX_CONTEXTS - len(PLAIN)) // len(PLAIN)  # C-GET's own aside
    classes = classes[:most]
    room = _MAX_CONTEXTS - len(PLAIN) - len(PLAIN) * len(classes)
    chosen: dict[str, list[str]] = {uid: [] for uid in classes}
    with_pixels = [uid for uid in classes if not uid.startswith(_WITHOUT_PIXELS)]
    for syntax in _compressed_first():
        for uid in with_pixels[: max(room, 0)]:
            chosen[uid].append(syntax)
        room -= len(with_pixels)
    return {uid: [*syntaxes, *PLAIN] for uid, syntaxes in chosen.items()}


def _compressed_first() -> list[str]:
    ranks = {Decoding.FRAMES: 0, Decoding.VIDEO: 1, Decoding.NONE: 2}
    others = [one for one in TRANSFER_SYNTAXES if str(one.uid) not in map(str, PLAIN)]
    others.sort(key=lambda one: (ranks[one.decoding], one.encoding is not Encoding.EXPLICIT_LITTLE))
    return [one.uid for one in others]


def _query(
    inquiry: Inquiry, association: Association, peer: Peer, study_uid: UID, level: str, keys: Mapping[str, str]
) -> list[Dataset]:
    """Return the matches of a C-FIND, of this study alone."""
    request = partial(association.send_c_find, _identifier(level, study_uid, keys), FIND)
    matches, status = inquiry.await_answer(association, lambda: _matches(peer, request()))
    if status != _SUCCESS:
        raise RetrieveError(f"{peer.name}: C-FIND at {level} level: {_meaning(status)}")
    # A peer that does not look at the key would name all that it has.
    return [one for one in matches if one.get("StudyInstanceUID", study_uid) == study_uid]


def _matches(peer: Peer, answers: Iterator[tuple[Dataset, Dataset | None]]) -> tuple[list[Dataset], int | None]:
    matches: list[Dataset] = []
    status = None
    for answer, match in answers:
        status = answer.get("Status")
        if status in _PENDING and match is not None:
            matches.append(match)
            _check_number(peer, len(matches))
    return matches, status


def _final(answers: Iterator[tuple[Dataset, Dataset | None]]) -> tuple[int | None, int]:
    """Return the last status, None without one, and the number of sub-operations that failed."""
    status: Dataset = Dataset()
    for answer, _ in answers:
        status = answer
    return status.get("Status"), int(status.get("NumberOfFailedSuboperations") or 0)


def _judge(peer: Peer, node: Node, service: str, ended: tuple[int | None, int]) -> None:
    status, num_failed = ended
    if status == _SUCCESS:
        return
    text = f"{peer.name}: {service}: {_meaning(status)}"
    if num_failed:
        text += f" ({num_failed} failed)"
    if service == "C-MOVE":
        text += f"; it must know {node.ae_title} with this machine's address and port {node.port}, and reach it"
    raise RetrieveError(text)


def _meaning(status: int | None) -> str:
    if status is None:
        return "aborted, or the connection was lost, in the middle"
    words = _MEANINGS.get(status, "it could not do it" if status >> 12 == 0xC else "it failed")
    return f"status 0x{status:04X}, {words}"


def _identifier(level: str, study_uid: UID, keys: Mapping[str, str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    identifier.StudyInstanceUID = study_uid
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


def _uid(peer: Peer, value: object) -> UID:
    try:
        return parse_uid(value)
    except InvalidUID as error:  # its message holds the value, which may be anything
        raise RetrieveError(f"{peer.name}: names an instance by something that is no UID") from error


def _check_number(peer: Peer, number: int) -> None:
    if number > MOST_INSTANCES:
        raise RetrieveError(f"{peer.name}: names more than {MOST_INSTANCES} instances for one study")
