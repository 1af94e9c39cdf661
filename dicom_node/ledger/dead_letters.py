"""Dead letters: reports that did not reach their peer, and how a person sends one again."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.identity import UID
from dicom_node.ledger import studies
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.schema import Delivery, DeliveryState, Report, Study, StudyState


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A report that a peer did not get."""

    study_instance_uid: str
    peer: str
    error: str | None
    attempts: int
    last_attempt_at: datetime


def dead_letters(sessions: Sessions, limit: int) -> Sequence[DeadLetter]:
    """Return the newest dead letters, at most `limit`."""
    with reading(sessions) as session:
        rows = session.execute(
            select(Delivery, Study.study_instance_uid)
            .join(Report, Report.id == Delivery.report_id)
            .join(Study, Study.id == Report.study_id)
            .where(Delivery.state == DeliveryState.DEAD)
            .order_by(Delivery.id.desc())
            .limit(limit)
        ).all()
    return [
        DeadLetter(
            study_instance_uid=study_uid,
            peer=delivery.peer,
            error=delivery.error,
            attempts=delivery.attempts,
            last_attempt_at=delivery.next_attempt_at,
        )
        for delivery, study_uid in rows
    ]


def deliver_again(sessions: Sessions, study_uid: UID, report_uid: UID, peer: str, clock: Clock) -> bool:
    """Put a dead letter back into the outbox, all attempts forgotten; a study that failed by it alone goes on.

    Returns:
        False: the report is no dead letter of this peer.

    Raises:
        UnknownStudy: the ledger does not hold the study.
    """
    study_id = studies.study_id_of(sessions, study_uid)
    now = clock()
    with sessions.begin() as session:
        study = studies.lock(session, study_id)
        own = select(Report).where(Report.study_id == study_id, Report.sop_instance_uid == report_uid)
        report = session.scalars(own).one_or_none()
        if study is None or report is None:
            return False
        if not studies.requeue_dead_letters(session, report.id, now, Delivery.peer == peer):
            return False
        detail = f"to {peer}, by hand"
        still_dead = _still_dead(session, report.id)
        if study.state != StudyState.FAILED or report.revision != study.revision:
            studies.note(session, study_id, now, "delivery_retried", detail)
        elif still_dead is not None:
            study.error = studies.not_reached(still_dead.peer, still_dead.error)
            studies.note(session, study_id, now, "delivery_retried", detail)
        else:
            studies.move(
                session,
                study_id,
                come_from=[StudyState.FAILED],
                to=StudyState.DELIVERING,
                at=now,
                detail=f"delivered again {detail}",
                values={"error": None},
            )
    return True


def _still_dead(session: Session, report_id: int) -> Delivery | None:
    return session.scalar(
        select(Delivery)
        .where(Delivery.report_id == report_id, Delivery.state == DeliveryState.DEAD)
        .order_by(Delivery.id)
        .limit(1)
    )
