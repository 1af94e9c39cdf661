"""The outbox: the promise to deliver each report to each of its peers, kept until a peer has answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.ledger import studies
from dicom_node.ledger.claims import make_token
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.reports import WrittenPicture, pictures_of
from dicom_node.ledger.schema import Delivery, DeliveryState, Report, Study, StudyState

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DueDelivery:
    """One report on its way to one peer, on lease."""

    delivery_id: int
    token: str
    """The fence."""
    peer: str
    study_id: int
    study_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    path: str
    """Relative to data_dir."""
    attempt: int
    """1 at the first."""
    created_at: datetime
    """When the promise was given, or renewed by a retry."""
    pictures: tuple[WrittenPicture, ...]
    """What goes out before it, in this order."""


def due(sessions: Sessions, peer: str, *, limit: int, lease: timedelta, clock: Clock) -> list[DueDelivery]:
    """Lease what is due for `peer`, oldest first; each attempt is counted before it is made.

    What another process held and did not answer for within its lease is due again.
    """
    token, now = make_token(peer), clock()
    with sessions.begin() as session:
        ids = session.scalars(
            select(Delivery.id)
            .where(
                Delivery.peer == peer,
                Delivery.state.in_([DeliveryState.WAITING, DeliveryState.SENDING]),  # lets the index leave out the rest
                or_(
                    and_(Delivery.state == DeliveryState.WAITING, Delivery.next_attempt_at <= now),
                    and_(Delivery.state == DeliveryState.SENDING, Delivery.lease_until < now),
                ),
            )
            .order_by(Delivery.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        if not ids:
            return []
        session.execute(
            update(Delivery)
            .where(Delivery.id.in_(ids))
            .values(
                state=DeliveryState.SENDING,
                attempts=Delivery.attempts + 1,
                lease_token=token,
                lease_until=now + lease,
            )
            .execution_options(synchronize_session=False)
        )
        rows = session.execute(
            select(Delivery, Report, Study.study_instance_uid)
            .join(Report, Report.id == Delivery.report_id)
            .join(Study, Study.id == Report.study_id)
            .where(Delivery.id.in_(ids))
            .order_by(Delivery.id)
        ).all()
        pictures = pictures_of(session, [report.id for _, report, _ in rows])
        return [
            DueDelivery(
                delivery_id=delivery.id,
                token=token,
                peer=peer,
                study_id=report.study_id,
                study_instance_uid=study_uid,
                sop_instance_uid=report.sop_instance_uid,
                sop_class_uid=report.sop_class_uid,
                path=report.path,
                attempt=delivery.attempts,
                created_at=delivery.created_at,
                pictures=tuple(pictures[report.id]),
            )
            for delivery, report, study_uid in rows
        ]


def owed_peers(sessions: Sessions) -> set[str]:
    """Return the names of all peers that a report is still owed to."""
    owed = (DeliveryState.WAITING, DeliveryState.SENDING)
    with reading(sessions) as session:
        return {*session.scalars(select(Delivery.peer).where(Delivery.state.in_(owed)).distinct())}


def delivered(sessions: Sessions, item: DueDelivery, clock: Clock, without: Sequence[str] = ()) -> bool:
    """Record that the peer has the report; the study is delivered with the last one. False: the fence is lost.

    Args:
        sessions: of the ledger.
        item: what was delivered.
        clock: of the node.
        without: the pictures that the peer has not, each with the reason.
    """
    now = clock()
    with sessions.begin() as session:
        studies.lock(session, item.study_id)  # two peers that answer at once must see each other
        if not _answer(session, item, {"state": DeliveryState.DELIVERED, "delivered_at": now, "error": None}):
            return False
        studies.note(
            session,
            item.study_id,
            now,
            "report_delivered",
            "; ".join([f"{item.peer}: {item.sop_instance_uid}", *without]),
        )
        if _is_newest(session, item) and not _is_owed(session, item):
            studies.move(
                session,
                item.study_id,
                come_from=[StudyState.DELIVERING],
                to=StudyState.DELIVERED,
                at=now,
                values={"delivered_at": now},
            )
    return True


def retry_later(sessions: Sessions, item: DueDelivery, error: str, next_attempt_at: datetime) -> bool:
    """Record that the attempt failed and when the next one is due. False: the fence is lost."""
    with sessions.begin() as session:
        return _answer(
            session, item, {"state": DeliveryState.WAITING, "next_attempt_at": next_attempt_at, "error": error}
        )


def release(sessions: Sessions, item: DueDelivery) -> bool:
    """Give back unharmed, as if never leased, what was not tried. False: the fence is lost."""
    with sessions.begin() as session:
        return _answer(session, item, {"state": DeliveryState.WAITING, "attempts": Delivery.attempts - 1})


def renew(sessions: Sessions, item: DueDelivery, lease: timedelta, clock: Clock) -> bool:
    """Prolong the lease. False: the fence is lost."""
    with sessions.begin() as session:
        held = {"state": DeliveryState.SENDING, "lease_token": item.token, "lease_until": clock() + lease}
        return _answer(session, item, held)


def dead(sessions: Sessions, item: DueDelivery, error: str, clock: Clock) -> bool:
    """Record that this peer will not have the report: a dead letter; the study fails. False: the fence is lost."""
    now = clock()
    with sessions.begin() as session:
        studies.lock(session, item.study_id)
        if not _answer(session, item, {"state": DeliveryState.DEAD, "error": error}):
            return False
        studies.note(session, item.study_id, now, "delivery_dead", f"{item.peer}: {error}")
        if _is_newest(session, item):
            reason = f"the report did not reach {item.peer}: {error}"
            studies.move(
                session,
                item.study_id,
                come_from=[StudyState.DELIVERING],
                to=StudyState.FAILED,
                at=now,
                detail=reason,
                values={"error": reason},
            )
    log.error("delivery_dead", study=item.study_id, peer=item.peer, report=item.sop_instance_uid, reason=error)
    return True


def _answer(session: Session, item: DueDelivery, values: dict[str, object]) -> bool:
    held = session.scalar(
        update(Delivery)
        .where(
            Delivery.id == item.delivery_id,
            Delivery.lease_token == item.token,
            Delivery.state == DeliveryState.SENDING,
        )
        .values({"lease_token": None, "lease_until": None, **values})
        .returning(Delivery.id)
        .execution_options(synchronize_session=False)
    )
    return held is not None


def _is_newest(session: Session, item: DueDelivery) -> bool:
    newest = session.scalar(
        select(Report.sop_instance_uid).where(Report.study_id == item.study_id).order_by(Report.id.desc()).limit(1)
    )
    return newest == item.sop_instance_uid


def _is_owed(session: Session, item: DueDelivery) -> bool:
    own = select(Delivery.report_id).where(Delivery.id == item.delivery_id).scalar_subquery()
    owed = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.DEAD)
    rows = session.scalars(select(Delivery.id).where(Delivery.report_id == own, Delivery.state.in_(owed)).limit(1))
    return rows.first() is not None
