"""Intake: an instance is kept when its bytes and its row are both safe; only then may a peer hear Success."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import structlog
from sqlalchemy import Engine, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.errors import LedgerUnavailable, StoreError, UidConflict
from dicom_node.identity import UID
from dicom_node.ledger import studies
from dicom_node.ledger.arrivals import Arrivals
from dicom_node.ledger.engine import Sessions, asking, lock_name, reading
from dicom_node.ledger.schema import Instance, InstanceState, Picture, Report, Study, StudyState
from dicom_node.ledger.writer import Transaction, Writer
from dicom_node.report.sr_class import SR_CLASSES, uid_in_class
from dicom_node.store import InstanceStore, Kept, dataset_digest, instance_path

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
    dataset: bytes | bytearray
    """Exactly as sent."""
    patient_id: str = ""
    """For the audit trail alone; empty: the data set has none."""


class IntakeKind(StrEnum):
    """What became of an instance; every kind is Success for the peer."""

    KEPT = "kept"
    """New."""
    IDENTICAL = "identical"
    """Known with the same bytes; nothing changed."""
    TAKEN_UP = "taken_up"
    """Known with the same bytes, but its analysis was given up: it is tried again."""
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
        engine = sessions.kw["bind"]
        assert isinstance(engine, Engine)
        self._sessions = sessions
        self._arrivals = Arrivals(engine)
        self._writer = Writer(sessions)
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
            is_new, known = self._look_up(received)
            if known is None:
                kept = self._keep_new(received) if is_new else self._keep(received)
                known = self._record_or_remove(received, kept)
        except _Conflict as conflict:
            raise self._quarantined(received, conflict.study_id) from conflict
        self._announce(received, known)
        return known

    def _look_up(self, received: Received) -> tuple[bool, IntakeOutcome | None]:
        """Return whether the ledger has nothing of it, and what needs no bytes written: what this node wrote, or an
        instance whose file is there."""
        with translated():
            if not self._is_mentioned(received):
                return True, None  # nearly always
            with reading(self._sessions) as session:
                known = _known(session, received, dataset_digest(received.dataset))
        if known is None or not known.is_settled or (known.path and not self._store.exists(known.path)):
            return False, None
        return False, known.outcome

    def _is_mentioned(self, received: Received) -> bool:
        if _is_report(received):
            return True
        with asking(self._sessions) as connection:
            return self._arrivals.is_mentioned(connection, received.sop_instance_uid)

    def _keep(self, received: Received) -> Kept:
        return self._store.keep(received.study_uid, received.sop_instance_uid, received.meta, received.dataset)

    def _keep_new(self, received: Received) -> Kept:
        try:
            return self._store.keep(
                received.study_uid, received.sop_instance_uid, received.meta, received.dataset, is_new=True
            )
        except StoreError:
            digest = dataset_digest(received.dataset)
            self._remove_orphan(received, instance_path(received.study_uid, received.sop_instance_uid, digest))
            raise

    def _record_or_remove(self, received: Received, kept: Kept) -> IntakeOutcome:
        try:
            with translated():
                return self._record(received, kept)
        except (LedgerUnavailable, _Conflict):
            self._remove_orphan(received, kept.path)
            raise

    def _record(self, received: Received, kept: Kept) -> IntakeOutcome:
        now = self._clock()

        def write(transaction: Transaction) -> IntakeOutcome:
            lock_name(transaction.connection, received.sop_instance_uid)
            outcome = self._add(transaction, received, kept, now)
            if outcome is None:
                outcome = self._decide(transaction.session, received, kept, now)
            # Retention, or the removal of an orphan, may have been here between the name and the locks, and then
            # another association with a file of its own, which is not safe yet.
            if not self._store.holds(kept):
                self._keep(received)
            return outcome

        return self._writer.write(write)

    def _add(self, transaction: Transaction, received: Received, kept: Kept, now: datetime) -> IntakeOutcome | None:
        """Add a new instance to a study that is being received; None: there is something to decide."""
        if _is_report(received):
            return None
        row, connection = _row(received, kept, now), transaction.connection.connection
        study_id = self._arrivals.add(connection, received.study_uid, row)
        if study_id is None:
            return None
        self._arrivals.touch(connection, study_id, now)
        return IntakeOutcome(kind=IntakeKind.KEPT, study_id=study_id)

    def _decide(self, session: Session, received: Received, kept: Kept, now: datetime) -> IntakeOutcome:
        known = _known(session, received, kept.sha256)
        study = studies.open_study(session, received.study_uid, now)
        if study.purged_at is not None:
            self._forget_removed(session, study)
            study.purged_at = None  # its images are here again
            study.last_received_at = max(now, study.last_received_at)  # and young
        if known is not None:
            return _again(session, study, known, kept, now)
        return _add_version(session, study, received, kept, now)

    def _forget_removed(self, session: Session, study: Study) -> None:
        """Take the paths out of the rows whose files retention removed: what is missing from now on was lost."""
        for table, own in (
            (Instance, Instance.study_id == study.id),
            (Picture, Picture.report_id.in_(select(Report.id).where(Report.study_id == study.id))),
        ):
            paths = session.execute(select(table.id, table.path).where(own, table.path != "")).all()
            gone = [id_ for id_, path in paths if not self._store.exists(path)]
            session.execute(
                update(table).where(table.id.in_(gone)).values(path="").execution_options(synchronize_session=False)
            )

    def _remove_orphan(self, received: Received, path: str) -> None:
        def write(transaction: Transaction) -> None:
            lock_name(transaction.connection, received.sop_instance_uid)
            # Another association may have sent the same bytes at the same time; then the file is its file.
            own = select(Instance.id).where(Instance.sop_instance_uid == received.sop_instance_uid)
            if transaction.connection.scalar(own.where(Instance.path == path).limit(1)) is None:
                self._store.remove(path)

        try:
            with translated():
                self._writer.write(write)
        except (LedgerUnavailable, OSError):
            # Whether a row refers to it cannot be known now, or the disk refuses this too. It does no harm: sent again,
            # it is written over.
            log.warning("orphan_left", instance=received.sop_instance_uid)

    def _quarantined(self, received: Received, study_id: int) -> UidConflict:
        aside = self._store.quarantine(received.meta, received.dataset)
        detail = f"{received.sop_instance_uid} came again in study {received.study_uid}; see {aside.path}"
        with translated(), self._sessions.begin() as session:
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
        if outcome.kind in (IntakeKind.KEPT, IntakeKind.VERSION, IntakeKind.TAKEN_UP):
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
    instance_id: int | None = None
    """None: it is what this node wrote."""
    path: str = ""
    """Of its file; empty: there need be none."""
    is_settled: bool = True
    """False: its file was removed by retention, or its analysis was given up."""


def _is_report(received: Received) -> bool:
    """Return whether its UID may stand in the ledger as that of another class."""
    return received.sop_class_uid in SR_CLASSES.values()


def _known(session: Session, received: Received, digest: str) -> _Known | None:
    """Return what the ledger already has; None: the instance, or this version of it, is new.

    Raises:
        _Conflict: it is known under another study.
    """
    sop_uid = received.sop_instance_uid
    own = _own(session, received)
    if own is not None:
        return _Known(outcome=IntakeOutcome(kind=IntakeKind.OWN_REPORT, study_id=own))
    versions = session.execute(
        select(Instance, Study.study_instance_uid, Study.purged_at)
        .join(Study, Study.id == Instance.study_id)
        .where(Instance.sop_instance_uid == sop_uid)
    ).all()
    for version, study_uid, purged_at in versions:
        if study_uid != received.study_uid:
            raise _Conflict(version.study_id)
        if version.sha256 == digest:
            is_given_up = version.is_current and version.state == InstanceState.FAILED
            return _Known(
                outcome=IntakeOutcome(kind=IntakeKind.IDENTICAL, study_id=version.study_id),
                instance_id=version.id,
                path=version.path,
                is_settled=bool(version.path) and purged_at is None and not is_given_up,
            )
    return None


def _own(session: Session, received: Received) -> int | None:
    """Return the study of a report that this node wrote, or of a picture of one: PACS send on what they get."""
    sop_uid = received.sop_instance_uid
    reports = select(Report.study_id).where(Report.sop_instance_uid == sop_uid)
    pictures = select(Report.study_id).join(Picture, Picture.report_id == Report.id)
    own = session.scalar(reports.union_all(pictures.where(Picture.sop_instance_uid == sop_uid)))
    if own is not None or not _is_report(received):
        return own
    # A report that went out in another class has another UID.
    written = select(Report.sop_instance_uid, Report.study_id).join(Study, Study.id == Report.study_id)
    for stored, study_id in session.execute(written.where(Study.study_instance_uid == received.study_uid)):
        if uid_in_class(UID(stored), received.sop_class_uid) == sop_uid:
            return int(study_id)
    return None


def _again(session: Session, study: Study, known: _Known, kept: Kept, now: datetime) -> IntakeOutcome:
    """Record that a known instance came again and has its file; one whose analysis was given up is tried again."""
    if known.instance_id is None:
        return known.outcome
    own = Instance.id == known.instance_id
    session.execute(
        update(Instance)
        .where(own)
        .values(path=kept.path, shared_at=None)  # what was removed here was removed from the object store too
        .execution_options(synchronize_session=False)
    )
    given_up = session.scalar(
        update(Instance)
        .where(own, Instance.is_current, Instance.state == InstanceState.FAILED)
        .values(state=InstanceState.PENDING, attempts=0, reason_code=None, reason=None)
        .returning(Instance.sop_instance_uid)
        .execution_options(synchronize_session=False)
    )
    if given_up is None:
        return known.outcome
    studies.note(session, study.id, now, "instance_taken_up", f"{given_up} came again: its analysis had been given up")
    _restart_wait(session, study, now)
    return IntakeOutcome(kind=IntakeKind.TAKEN_UP, study_id=study.id)


def _add_version(session: Session, study: Study, received: Received, kept: Kept, now: datetime) -> IntakeOutcome:
    """Add an instance that is new, or has other content than what is known by its UID."""
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
    session.add(Instance(study_id=study.id, state=InstanceState.PENDING, **_row(received, kept, now)))
    _restart_wait(session, study, now)
    return IntakeOutcome(kind=IntakeKind.KEPT if older is None else IntakeKind.VERSION, study_id=study.id)


def _row(received: Received, kept: Kept, now: datetime) -> dict[str, object]:
    """Return the columns of an instance that come with it."""
    return {
        "sop_instance_uid": received.sop_instance_uid,
        "sop_class_uid": received.sop_class_uid,
        "series_instance_uid": received.series_uid,
        "transfer_syntax_uid": received.transfer_syntax_uid,
        "path": kept.path,
        "sha256": kept.sha256,
        "num_bytes": kept.num_bytes,
        "num_frames": received.num_frames,
        "calling_ae": received.calling_ae,
        "received_at": now,
        "is_loop": received.num_frames is not None and received.num_frames > 1,
    }


def _restart_wait(session: Session, study: Study, now: datetime) -> None:
    """Put the (locked) study back to `receiving`; once its report was begun, that opens the next revision."""
    study.last_received_at = max(now, study.last_received_at)
    study.rung_at = now  # the caller rings after the commit
    session.flush()
    if study.state == StudyState.RECEIVING:
        return
    values: dict[str, object] = {"completed_at": None}
    detail = "late instance"
    if study.state != StudyState.ANALYSING:
        values |= {"revision": study.revision + 1, "attempts": 0, "error": None, "delivered_at": None}
        detail = f"late instance: revision {study.revision + 1}"
    come_from = [StudyState(study.state)]
    studies.move(session, study.id, come_from=come_from, to=StudyState.RECEIVING, at=now, detail=detail, values=values)


@contextmanager
def translated() -> Iterator[None]:
    """Raise what the database cannot do now as the one thing that a peer can act on: send again."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        said = str(getattr(error, "orig", None) or error).partition("\n")[0]  # without statement and parameters
        raise LedgerUnavailable(f"the ledger did not commit: {said}") from error
