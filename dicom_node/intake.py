"""Intake: an instance is kept when its bytes and its row are both safe; only then may a peer hear Success."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import structlog
from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.errors import LedgerUnavailable, UidConflict
from dicom_node.identity import UID
from dicom_node.ledger import studies
from dicom_node.ledger.engine import Sessions, WriteTurn, lock_name, reading
from dicom_node.ledger.schema import Instance, InstanceState, Picture, Report, Study, StudyState
from dicom_node.report.sr_class import SR_CLASSES, uid_in_class
from dicom_node.store import InstanceStore, Kept, dataset_digest

log = structlog.get_logger(__name__)

Ring = Callable[[int], None]
"""Calls a worker for a study; never blocks, never raises."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """One instance as it came over the network, its identity parsed."""

    study_uid: UID
    series_uid: UID
    sop_instance_uid: UID
    sop_class_uid: UID
    transfer_syntax_uid: UID
    calling_ae: str
    num_frames: int | None
    """Number of Frames (0028,0008); None where the header has none."""
    meta: bytes
    """Preamble, prefix and group 2, as they stand before the data set in the file."""
    dataset: bytes
    """Exactly as sent."""


class IntakeKind(StrEnum):
    """What became of an instance; every kind is Success for the peer."""

    KEPT = "kept"
    """New."""
    IDENTICAL = "identical"
    """Known with the same bytes; nothing changed."""
    VERSION = "version"
    """Known in this study with other bytes; the newest is current, the older stay."""
    OWN_REPORT = "own_report"
    """A report that this node wrote, or a picture of one; not kept, nothing opened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeOutcome:
    """What became of an instance, and of which study."""

    kind: IntakeKind
    study_id: int


class Intake:
    """Receives instances; threads and processes may share one store and one ledger."""

    def __init__(self, sessions: Sessions, store: InstanceStore, clock: Clock, ring: Ring) -> None:
        self._sessions = sessions
        self._turn = WriteTurn(sessions)
        self._store = store
        self._clock = clock
        self._ring = ring

    def receive(self, received: Received) -> IntakeOutcome:
        """Keep an instance; it is safe, and counted to its study, when this returns.

        Raises:
            UidConflict: its SOP Instance UID is known under another study; the bytes are in quarantine.
            OutOfSpace, StoreError: nothing was kept.
            LedgerUnavailable: nothing was kept.
        """
        try:
            known = self._look_up(received)
            if known is None:
                kept = self._keep(received)
                known = self._record_or_remove(received, kept)
        except _Conflict as conflict:
            raise self._quarantined(received, conflict.study_id) from conflict
        self._announce(received, known)
        return known

    def _look_up(self, received: Received) -> IntakeOutcome | None:
        """Return what needs no bytes written: what this node wrote, or an instance whose file is there."""
        with _translated(), reading(self._sessions) as session:
            known = _known(session, received, dataset_digest(received.dataset))
        if known is None or (known.path is not None and not self._store.exists(known.path)):
            return None
        return known.outcome

    def _keep(self, received: Received) -> Kept:
        return self._store.keep(received.study_uid, received.sop_instance_uid, received.meta, received.dataset)

    def _record_or_remove(self, received: Received, kept: Kept) -> IntakeOutcome:
        try:
            with _translated():
                return self._record(received, kept)
        except (LedgerUnavailable, _Conflict):
            self._remove_orphan(received, kept)
            raise

    def _record(self, received: Received, kept: Kept) -> IntakeOutcome:
        now = self._clock()
        with self._turn, self._sessions.begin() as session:
            lock_name(session, received.sop_instance_uid)
            known = _known(session, received, kept.sha256)
            study = studies.open_study(session, received.study_uid, now)
            study.purged_at = None  # its images are here again
            outcome = known.outcome if known is not None else _add(session, study, received, kept, now)
            # Retention, or the removal of an orphan, may have been here between the rename and the locks.
            if not self._store.exists(kept.path):
                self._keep(received)
            return outcome

    def _remove_orphan(self, received: Received, kept: Kept) -> None:
        try:
            with _translated(), self._turn, self._sessions.begin() as session:
                lock_name(session, received.sop_instance_uid)
                # Another association may have sent the same bytes at the same time; then the file is its file.
                if session.scalar(select(Instance.id).where(Instance.path == kept.path).limit(1)) is None:
                    self._store.remove(kept.path)
        except LedgerUnavailable:
            # Whether a row refers to it cannot be known now. It does no harm: sent again, it is written over.
            log.warning("orphan_left", instance=received.sop_instance_uid)

    def _quarantined(self, received: Received, study_id: int) -> UidConflict:
        aside = self._store.quarantine(received.meta, received.dataset)
        detail = f"{received.sop_instance_uid} came again in study {received.study_uid}; see {aside.path}"
        with _translated(), self._sessions.begin() as session:
            studies.note(session, study_id, self._clock(), "uid_conflict", detail)
        log.warning("instance_quarantined", study=study_id, instance=received.sop_instance_uid, path=aside.path)
        return UidConflict(f"SOP Instance UID {received.sop_instance_uid} is known in another study")

    def _announce(self, received: Received, outcome: IntakeOutcome) -> None:
        log.info(
            "instance_received",
            kind=outcome.kind,
            study=outcome.study_id,
            instance=received.sop_instance_uid,
            bytes=len(received.dataset),
        )
        if outcome.kind in (IntakeKind.KEPT, IntakeKind.VERSION):
            self._ring(outcome.study_id)  # after the commit: a worker must find what it is called for


class _Conflict(Exception):
    """The instance is known under the study `study_id`."""

    def __init__(self, study_id: int) -> None:
        super().__init__(study_id)
        self.study_id = study_id


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What the ledger already has of an instance."""

    outcome: IntakeOutcome
    path: str | None
    """Of its file; None: there need be none."""


def _known(session: Session, received: Received, digest: str) -> _Known | None:
    """Return what the ledger already has; None: the instance, or this version of it, is new.

    Raises:
        _Conflict: it is known under another study.
    """
    sop_uid = received.sop_instance_uid
    own = _own(session, received)
    if own is not None:
        return _Known(outcome=IntakeOutcome(kind=IntakeKind.OWN_REPORT, study_id=own), path=None)
    versions = session.execute(
        select(Instance.study_id, Instance.sha256, Instance.path, Study.study_instance_uid)
        .join(Study, Study.id == Instance.study_id)
        .where(Instance.sop_instance_uid == sop_uid)
    ).all()
    for study_id, known_digest, path, study_uid in versions:
        if study_uid != received.study_uid:
            raise _Conflict(study_id)
        if known_digest == digest:
            return _Known(outcome=IntakeOutcome(kind=IntakeKind.IDENTICAL, study_id=study_id), path=path)
    return None


def _own(session: Session, received: Received) -> int | None:
    """Return the study of a report that this node wrote, or of a picture of one: PACS send on what they get."""
    sop_uid = received.sop_instance_uid
    reports = select(Report.study_id).where(Report.sop_instance_uid == sop_uid)
    pictures = select(Report.study_id).join(Picture, Picture.report_id == Report.id)
    # One question: it is asked for every instance that arrives.
    own = session.scalar(reports.union_all(pictures.where(Picture.sop_instance_uid == sop_uid)))
    if own is not None or received.sop_class_uid not in SR_CLASSES.values():
        return own
    # A report that went out in another class has another UID.
    written = select(Report.sop_instance_uid, Report.study_id).join(Study, Study.id == Report.study_id)
    for stored, study_id in session.execute(written.where(Study.study_instance_uid == received.study_uid)):
        if uid_in_class(UID(stored), received.sop_class_uid) == sop_uid:
            return int(study_id)
    return None


def _add(session: Session, study: Study, received: Received, kept: Kept, now: datetime) -> IntakeOutcome:
    sop_uid = received.sop_instance_uid
    older = session.scalar(
        update(Instance)
        .where(Instance.sop_instance_uid == sop_uid, Instance.is_current)
        .values(is_current=False)
        .returning(Instance.id)
        .execution_options(synchronize_session=False)
    )
    if older is not None:
        studies.note(session, study.id, now, "instance_version", f"{sop_uid} came with other content")
    session.add(
        Instance(
            study_id=study.id,
            sop_instance_uid=sop_uid,
            sop_class_uid=received.sop_class_uid,
            series_instance_uid=received.series_uid,
            transfer_syntax_uid=received.transfer_syntax_uid,
            path=kept.path,
            sha256=kept.sha256,
            num_bytes=kept.num_bytes,
            num_frames=received.num_frames,
            calling_ae=received.calling_ae,
            received_at=now,
            state=InstanceState.PENDING,
            is_loop=received.num_frames is not None and received.num_frames > 1,
        )
    )
    _restart_wait(session, study, now)
    session.flush()
    return IntakeOutcome(kind=IntakeKind.KEPT if older is None else IntakeKind.VERSION, study_id=study.id)


def _restart_wait(session: Session, study: Study, now: datetime) -> None:
    """Put the (locked) study back to `receiving`; once its report was begun, that opens the next revision."""
    study.last_received_at = max(now, study.last_received_at)
    study.rung_at = now  # the caller rings after the commit
    if study.state == StudyState.RECEIVING:
        return
    values: dict[str, object] = {"completed_at": None}
    detail = "late instance"
    if study.state != StudyState.ANALYSING:
        values |= {"revision": study.revision + 1, "attempts": 0, "error": None, "delivered_at": None}
        detail = f"late instance: revision {study.revision + 1}"
    session.flush()
    come_from = [StudyState(study.state)]
    studies.move(session, study.id, come_from=come_from, to=StudyState.RECEIVING, at=now, detail=detail, values=values)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what the database cannot do now as the one thing that a peer can act on: send again."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        said = str(getattr(error, "orig", None) or error).partition("\n")[0]  # without statement and parameters
        raise LedgerUnavailable(f"the ledger did not commit: {said}") from error
