"""Studies: how they begin, how their state moves, and how a person takes up one that failed.

Rows are locked in one order everywhere: the study first, then what belongs to it. The lock is FOR NO KEY UPDATE
(`key_share`), so that a row that only refers to the study, such as a line of history, never waits for it.
"""

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.errors import UnknownStudy
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
    row = {
        "study_instance_uid": study_uid,
        "state": StudyState.RECEIVING,
        "received_at": at,
        "last_received_at": at,
    }
    new = insert_or_ignore(session, Study, row)
    if new is not None:
        note(session, new, at, StudyState.RECEIVING, "first instance")
    return session.scalars(
        select(Study).where(Study.study_instance_uid == study_uid).with_for_update(key_share=True)
    ).one()


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
    """Take up a failed study where it stopped, all attempts forgotten; return its new state, None if it had not failed.

    The caller rings for it when the state is `analysing`.

    Raises:
        UnknownStudy: the ledger does not hold it.
    """
    study_id = study_id_of(sessions, study_uid)
    now = clock()
    with sessions.begin() as session:
        study = lock(session, study_id)
        if study is None or study.state != StudyState.FAILED:
            return None
        report_id = session.scalar(
            select(Report.id).where(Report.study_id == study_id, Report.revision == study.revision)
        )
        if report_id is None:
            _requeue_failed_instances(session, study_id)
            to = StudyState.ANALYSING
        else:
            _requeue_dead_deliveries(session, report_id, now)
            to = StudyState.DELIVERING
        values: dict[str, object] = {"attempts": 0, "error": None, "rung_at": now}
        move(session, study_id, come_from=[StudyState.FAILED], to=to, at=now, detail="retried by hand", values=values)
        return to


def _requeue_failed_instances(session: Session, study_id: int) -> None:
    session.execute(
        update(Instance)
        .where(Instance.study_id == study_id, Instance.state == InstanceState.FAILED, Instance.is_current)
        .values(state=InstanceState.PENDING, attempts=0, reason_code=None, reason=None)
        .execution_options(synchronize_session=False)
    )


def _requeue_dead_deliveries(session: Session, report_id: int, now: datetime) -> None:
    session.execute(
        update(Delivery)
        .where(Delivery.report_id == report_id, Delivery.state == DeliveryState.DEAD)
        .values(state=DeliveryState.WAITING, attempts=0, error=None, next_attempt_at=now, created_at=now)
        .execution_options(synchronize_session=False)
    )
