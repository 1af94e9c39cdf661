"""Fetching a study from a peer: what it has, each instance through the same intake as what is sent to us, and the sum.

What came is kept whatever happens next, and fetching again completes it: an instance that is known changes nothing.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypedDict

from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_STORE

from dicom_node import query_retrieve, scp
from dicom_node.association_server import Limits
from dicom_node.errors import ConfigurationError, InvalidUID, OtherStudy, RetrieveError
from dicom_node.holdings import held
from dicom_node.identity import UID, parse_uid
from dicom_node.intake import IntakeKind, IntakeOutcome, Received
from dicom_node.ledger.engine import Sessions
from dicom_node.retrieve_web import DicomWeb, take_apart
from dicom_node.road import Road
from dicom_node.serve import STATE_FILE
from dicom_node.settings import Node, Peer
from dicom_node.store import InstanceStore

_POLL_SECONDS = 0.2
_PROBE_SECONDS = 5.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}

Tell = Callable[[int, int], None]
"""Hears how many instances have come, of how many."""


class RefusedJson(TypedDict):
    """An instance that came and was not kept."""

    sop_instance_uid: str | None
    reason: str


class PulledJson(TypedDict):
    """What a pull did, for programs."""

    study_instance_uid: str
    peer: str
    by: str
    found: int
    kept: int
    known: int
    refused: list[RefusedJson]
    missing: list[str]
    error: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulled:
    """What became of a study."""

    study_uid: UID
    peer: str
    road: Road
    found: frozenset[UID]
    """What the peer says that the study consists of."""
    kept: frozenset[UID]
    """New here, or new in its content."""
    known: frozenset[UID]
    """Here before, or written by this node."""
    refused: tuple[tuple[UID | None, str], ...]
    """What came and was not kept, with the reason."""
    error: str | None
    """How the road ended, if not well."""

    @property
    def missing(self) -> list[UID]:
        """Return what did not come at all."""
        return sorted(self.found - self.kept - self.known - {uid for uid, _ in self.refused if uid is not None})

    @property
    def is_complete(self) -> bool:
        """Return whether all of the study is here."""
        return self.found <= self.kept | self.known

    def as_json(self) -> PulledJson:
        """Return it for programs."""
        return PulledJson(
            study_instance_uid=self.study_uid,
            peer=self.peer,
            by=self.road.value,
            found=len(self.found),
            kept=len(self.kept),
            known=len(self.known),
            refused=[RefusedJson(sop_instance_uid=uid, reason=reason) for uid, reason in self.refused],
            missing=[*self.missing],
            error=self.error,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """Where a study comes to."""

    node: Node
    sessions: Sessions
    store: InstanceStore
    receive: scp.Receive


def pull(home: Home, peer: Peer, study_uid: UID, *, by: Road | None, patience: timedelta, progress: Tell) -> Pulled:
    """Fetch a study; what came is kept even if the rest does not come.

    Args:
        home: where it comes to.
        peer: who has it.
        study_uid: which study.
        by: the road; None: the web where the peer has a DICOMweb URL, else C-GET where it accepts it, else C-MOVE.
        patience: how long nothing may get on.
        progress: hears how far it is.

    Raises:
        ConfigurationError: the peer has no address for this road.
        RetrieveError: the peer does not know the study, or it cannot come by this road.
    """

    def haul(road: Road, found: Iterable[UID]) -> _Haul:
        return _Haul(home=home, peer=peer, study_uid=study_uid, road=road, found=frozenset(found), progress=progress)

    if by is Road.WEB or (by is None and peer.dicomweb_url):
        if not peer.dicomweb_url:
            raise ConfigurationError(f"peers: {peer.name} has no dicomweb_url")
        service = DicomWeb(peer, patience, Limits(max_pdu=home.node.max_pdu))
        coming = haul(Road.WEB, service.find_study(study_uid))
        return coming.sum_up(lambda: _by_web(coming, service))
    if not peer.host:
        raise ConfigurationError(f"peers: {peer.name} has no host: set host and port, or dicomweb_url")
    found = query_retrieve.find_study(home.node, peer, study_uid, patience)
    road = by or next((one for one in (Road.GET, Road.MOVE) if one in found.roads), None)
    if road is None:
        raise RetrieveError(f"{peer.name}: takes neither Study Root C-GET nor C-MOVE from {home.node.ae_title}")
    coming = haul(road, found.instances)
    if road is Road.MOVE:
        _check_that_the_node_listens(home)
        return coming.sum_up(lambda: _by_move(coming, patience))
    classes = set(found.instances.values())
    return coming.sum_up(
        lambda: query_retrieve.get_study(home.node, peer, study_uid, classes, patience, coming.on_c_store)
    )


@dataclass(kw_only=True)
class _Haul:
    """What has come so far."""

    home: Home
    peer: Peer
    study_uid: UID
    road: Road
    found: frozenset[UID]
    progress: Tell
    kept: set[UID] = field(default_factory=set)
    known: set[UID] = field(default_factory=set)
    refused: list[tuple[UID | None, str]] = field(default_factory=list)

    def receive(self, received: Received) -> IntakeOutcome:
        """Keep an instance of this study."""
        if received.study_uid != self.study_uid:
            raise OtherStudy("of another study than was asked for")
        outcome = self.home.receive(received)
        uid = received.sop_instance_uid
        if outcome.kind in (IntakeKind.KEPT, IntakeKind.VERSION):
            self.kept.add(uid)
        elif uid not in self.kept:
            self.known.add(uid)
        return outcome

    def note(self, sop_instance: object, refusal: scp.Refusal | None) -> None:
        """Remember a refusal, and tell how far it is."""
        if refusal is not None:
            self.refused.append((_uid_or_none(sop_instance), refusal.comment))
        self.tell()

    def tell(self) -> None:
        """Tell how far it is."""
        self.progress(len(self.found & (self.kept | self.known)), len(self.found))

    def on_c_store(self, event: evt.Event) -> Dataset:
        """Answer a sub-operation of a C-GET."""
        assert isinstance(event.request, C_STORE)
        refusal = scp.take(event, self.peer.ae_title, self.receive, self.home.store.quarantine)
        self.note(event.request.AffectedSOPInstanceUID, refusal)
        return scp.answer(refusal)

    def sum_up(self, fetch: Callable[[], None]) -> Pulled:
        """Return what became of the study after `fetch`, however that ends."""
        error = None
        try:
            fetch()
        except RetrieveError as ended:
            error = str(ended)
        return Pulled(
            study_uid=self.study_uid,
            peer=self.peer.name,
            road=self.road,
            found=self.found,
            kept=frozenset(self.kept),
            known=frozenset(self.known),
            refused=tuple(self.refused),
            error=error,
        )


def _by_web(haul: _Haul, service: DicomWeb) -> None:
    for file in service.instances(haul.study_uid):
        _keep_file(haul, file)


def _keep_file(haul: _Haul, file: bytearray) -> None:
    part = take_apart(file)
    if part is None:
        haul.refused.append((None, "a part of the answer is no DICOM file"))
        return
    sent = scp.Sent(
        sop_class=part.sop_class,
        sop_instance=part.sop_instance,
        transfer_syntax=part.transfer_syntax,
        sender=haul.peer.ae_title,
        dataset=part.dataset,
    )
    haul.note(part.sop_instance, scp.keep(sent, haul.receive, haul.home.store.quarantine))


def _by_move(haul: _Haul, patience: timedelta) -> None:
    home = haul.home
    haul.known |= held(home.sessions, home.store, haul.study_uid, haul.found)

    def look() -> bool:
        """Return whether more is here than at the last look."""
        left = haul.found - haul.known - haul.kept
        arrived = held(home.sessions, home.store, haul.study_uid, left) if left else set()
        haul.kept |= arrived
        haul.tell()
        return bool(arrived)

    try:
        query_retrieve.move_study(home.node, haul.peer, haul.study_uid, patience, look)
    finally:
        look()
    _wait_for_the_rest(haul, look, patience)


def _wait_for_the_rest(haul: _Haul, look: Callable[[], bool], patience: timedelta) -> None:
    """Wait for what a peer that answers before it sends has still to send."""
    seen_at = time.monotonic()
    while True:
        if look():
            seen_at = time.monotonic()
        if haul.found <= haul.kept | haul.known:
            return
        if time.monotonic() - seen_at > patience.total_seconds():
            raise RetrieveError(
                f"{haul.peer.name}: C-MOVE: said that all is sent, and not all arrived here; "
                f"does its entry for {haul.home.node.ae_title} name this machine?"
            )
        time.sleep(_POLL_SECONDS)


def _check_that_the_node_listens(home: Home) -> None:
    """Say so before a peer is asked to send to nobody."""
    host, port = _EVERYWHERE.get(home.node.host, home.node.host), home.node.port or _running_port(home)
    try:
        socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise RetrieveError(
            f"by C-MOVE the study comes to the running node, and nothing listens on {host}:{port}: "
            "start dicom-node serve first"
        ) from error


def _running_port(home: Home) -> int:
    """Return the port that a node with port = 0 got; 0: none runs."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(json.loads((home.node.data_dir / STATE_FILE).read_text())["port"])
    return 0


def _uid_or_none(value: object) -> UID | None:
    try:
        return parse_uid(value)
    except InvalidUID:
        return None
