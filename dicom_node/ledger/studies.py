"""Studies: how they begin, how their state moves, and how a person takes one up again.

Rows are locked in one order everywhere: the study first, then what belongs to it. The lock is FOR NO KEY UPDATE
(`key_share`), so that a row that only refers to the study, such as a line of history, never waits for it.
"""

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import ColumnElement, bindparam, func, select, update
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.errors import CannotReopen, UnknownStudy
from dicom_node.identity import UID
from dicom_node.ledger.engine import Sessions, insert_or_ignore, reading
from dicom_node.ledger.schema import (
    Delivery,
    DeliveryState,
    History,
    Instance,
    InstanceState,
    Report,
    Study,
    StudyState,
)

_BY_UID = select(Study).where(Study.study_instance_uid == bindparam("uid")).with_for_update(key_share=True)
ENDED = (StudyState.DELIVERING, StudyState.DELIVERED, StudyState.FAILED)
"""No worker has anything to do for these."""


def study_id_of(sessions: Sessions, study_uid: UID) -> int:
    """Return the ledger's id of a study.

    Raises:
        UnknownStudy: the ledger does not hold it.
    """
    with reading(sessions) as session:
        study_id = session.scalar(select(Study.id).where(Study.study_instance_uid == study_uid))
    if study_id is None:
        raise UnknownStudy(f"no study {study_uid} in the ledger")
    return study_id


def open_study(session: Session, study_uid: UID, at: datetime) -> Study:
    """Return the study's row, made if it is new, locked until the transaction ends."""
    known = session.scalars(_BY_UID, {"uid": study_uid}).one_or_none()
    if known is not None:
        return known
    row = {
        "study_instance_uid": study_uid,
        "state": StudyState.RECEIVING,
        "received_at": at,
        "last_received_at": at,
    }
    new = insert_or_ignore(session, Study, row)
    if new is not None:
        note(session, new, at, StudyState.RECEIVING, "first instance")
    return session.scalars(_BY_UID, {"uid": study_uid}).one()


def lock(session: Session, study_id: int) -> Study | None:
    """Return the study as it is now, locked until the transaction ends; None if there is none."""
    statement = select(Study).where(Study.id == study_id).with_for_update(key_share=True)
    return session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()


def note(session: Session, study_id: int, at: datetime, event: str, detail: str = "") -> None:
    """Add a line to the study's history."""
    session.add(History(study_id=study_id, at=at, event=event, detail=detail))


def move(
    session: Session,
    study_id: int,
    *,
    come_from: Collection[StudyState],
    to: StudyState,
    at: datetime,
    detail: str = "",
    token: str | None = None,
    values: Mapping[str, object] | None = None,
) -> bool:
    """Move a study by compare-and-set, with its line of history; the lease on it ends unless `values` gives one.

    Args:
        token: the fence that the study must still carry, if the mover holds one.
        values: further columns to set.

    Returns:
        False: the study was not in a state of `come_from`, or the fence is lost; nothing changed.
    """
    statement = update(Study).where(Study.id == study_id, Study.state.in_(come_from))
    if token is not None:
        statement = statement.where(Study.lease_token == token)
    columns: dict[str, object] = {"state": to, "lease_token": None, "lease_until": None, **(values or {})}
    moved = session.scalar(statement.values(columns).returning(Study.id).execution_options(synchronize_session=False))
    if moved is None:
        return False
    note(session, study_id, at, to, detail)
    return True


def retry(sessions: Sessions, study_uid: UID, clock: Clock) -> StudyState | None:
    """Take up a failed study where it stopped, all attempts forgotten; one that did not fail, where the analysis of an
    instance was given up: its next revision. Return the new state, None if nothing failed.

    The caller rings for it when the state is `analysing`.

    Raises:
        UnknownStudy: the ledger does not hold it.
        CannotReopen: the images of what was given up are gone.
    """
    study_id = study_id_of(sessions, study_uid)
    now = clock()
    with sessions.begin() as session:
        study = lock(session, study_id)
        if study is None or study.state not in ENDED:
            return None
        if study.state != StudyState.FAILED:
            return _retry_given_up(session, study, now)
        report_id = session.scalar(
            select(Report.id).where(Report.study_id == study_id, Report.revision == study.revision)
        )
        if report_id is None:
            _requeue(session, study_id, [InstanceState.FAILED])
            to = StudyState.ANALYSING
        else:
            requeue_dead_letters(session, report_id, now)
            to = StudyState.DELIVERING
        values: dict[str, object] = {"attempts": 0, "error": None, "rung_at": now}
        move(session, study_id, come_from=[StudyState.FAILED], to=to, at=now, detail="retried by hand", values=values)
        return to


def reprocess(sessions: Sessions, study_uid: UID, clock: Clock) -> None:
    """Analyse every instance of a study again, and open its next revision: its report names the one before.

    The caller rings for it.

    Raises:
        UnknownStudy: the ledger does not hold it.
        CannotReopen: it is still being analysed, or images of it are gone.
    """
    study_id = study_id_of(sessions, study_uid)
    now = clock()
    with sessions.begin() as session:
        study = lock(session, study_id)
        if study is None or study.state not in ENDED:
            raise CannotReopen(
                f"study {study_uid} is still being analysed: wait until it is delivered or failed, then reprocess it"
            )
        _need_images(session, study, list(InstanceState))
        _requeue(session, study_id, [InstanceState.ANALYSED, InstanceState.NOT_ANALYSED, InstanceState.FAILED])
        _reopen(session, study, now, "reprocessed by hand")


def _retry_given_up(session: Session, study: Study, now: datetime) -> StudyState | None:
    given_up = _of(study.id, [InstanceState.FAILED])
    if session.scalar(select(Instance.id).where(*given_up).limit(1)) is None:
        return None
    _need_images(session, study, [InstanceState.FAILED])
    _requeue(session, study.id, [InstanceState.FAILED])
    _reopen(session, study, now, "retried by hand")
    return StudyState.ANALYSING


def _of(study_id: int, states: Collection[InstanceState]) -> tuple[ColumnElement[bool], ...]:
    return Instance.study_id == study_id, Instance.is_current.is_(True), Instance.state.in_(states)


def _need_images(session: Session, study: Study, states: Collection[InstanceState]) -> None:
    """Refuse to analyse what retention removed.

    Raises:
        CannotReopen: files of current instances in these states are gone.
    """
    wanted = _of(study.id, states)
    gone = wanted if study.purged_at is not None else (*wanted, Instance.path == "")
    number = session.scalar(select(func.count()).select_from(Instance).where(*gone)) or 0
    if number:
        raise CannotReopen(
            f"retention removed {number} images of study {study.study_instance_uid}: send or pull it again, then repeat"
        )


def _reopen(session: Session, study: Study, at: datetime, detail: str) -> None:
    """Let the (locked) study be analysed and reported once more: its next revision."""
    move(
        session,
        study.id,
        come_from=[StudyState(study.state)],
        to=StudyState.ANALYSING,
        at=at,
        detail=f"{detail}: revision {study.revision + 1}",
        values={
            "revision": study.revision + 1,
            "attempts": 0,
            "error": None,
            "delivered_at": None,
            "rung_at": at,
        },
    )


def _requeue(session: Session, study_id: int, states: Collection[InstanceState]) -> None:
    session.execute(
        update(Instance)
        .where(*_of(study_id, states), Instance.path != "")
        .values(state=InstanceState.PENDING, attempts=0, reason_code=None, reason=None)
        .execution_options(synchronize_session=False)
    )


def requeue_dead_letters(session: Session, report_id: int, now: datetime, *which: ColumnElement[bool]) -> int:
    """Put dead letters of a report, all or which, back into the outbox, all attempts forgotten; return how many."""
    requeued = session.execute(
        update(Delivery)
        .where(Delivery.report_id == report_id, Delivery.state == DeliveryState.DEAD, *which)
        .values(state=DeliveryState.WAITING, attempts=0, error=None, next_attempt_at=now, created_at=now)
        .returning(Delivery.id)
        .execution_options(synchronize_session=False)
    )
    return len(requeued.all())


def not_reached(peer: str, error: str | None) -> str:
    """Return why a study failed one of whose peers has not got its report."""
    return f"the report did not reach {peer}: {error}"
