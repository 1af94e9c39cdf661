"""The outbox: the promise to deliver each report to each of its peers, kept until a peer has answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import and_, exists, or_, select, update
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.commitment import Reference
from dicom_node.ledger import leases, pledges, studies
from dicom_node.ledger.claims import make_token
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.reports import WrittenPicture, pictures_of
from dicom_node.ledger.schema import OWED, Delivery, DeliveryState, History, Report, Study, StudyState

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """When a study took its steps, as it is delivered."""

    last_image_at: datetime | None
    """None: no image has come since the report before, it was analysed again because somebody wished it."""
    completed_at: datetime | None
    reported_at: datetime
    delivered_at: datetime


Passed = Callable[[Passage], None]
"""Hears of each study that is delivered: once in each revision, for one that is sent again took its steps before."""


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
                Delivery.state.in_(OWED),  # lets the index leave out the rest
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
    with reading(sessions) as session:
        return {*session.scalars(select(Delivery.peer).where(Delivery.state.in_(OWED)).distinct())}


def delivered(
    sessions: Sessions,
    item: DueDelivery,
    clock: Clock,
    without: Sequence[str] = (),
    ask_for: Sequence[Reference] = (),
    passed: Passed = lambda _passage: None,
) -> bool:
    """Record that the peer has the report; the study is delivered with the last one. False: the fence is lost.

    Args:
        sessions: of the ledger.
        item: what was delivered.
        clock: of the node.
        without: the pictures that the peer has not, each with the reason.
        ask_for: what the peer is to commit to, as it was sent, the report last; empty: it is not asked.
        passed: hears of it if the study is delivered with this report.
    """
    now = clock()
    passage: Passage | None = None
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
        if ask_for:
            pledges.want(session, item.delivery_id, ask_for, now)
        if _is_newest(session, item) and not _is_owed(session, item):
            found = _passage(session, item, now)  # before the line of history that the move adds
            is_moved = studies.move(
                session,
                item.study_id,
                come_from=[StudyState.DELIVERING],
                to=StudyState.DELIVERED,
                at=now,
                values={"delivered_at": now},
            )
            passage = found if is_moved else None
    if passage is not None:
        passed(passage)
    return True


def retry_later(sessions: Sessions, item: DueDelivery, error: str, next_attempt_at: datetime) -> bool:
    """Record that the attempt failed and when the next one is due. False: the fence is lost."""
    with sessions.begin() as session:
        studies.lock(session, item.study_id)
        if _is_replaced(session, item):
            return _answer(session, item, {"state": DeliveryState.SUPERSEDED, "error": error})
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
        if _is_replaced(session, item):
            return _answer(session, item, {"state": DeliveryState.SUPERSEDED, "error": error})
        if not _answer(session, item, {"state": DeliveryState.DEAD, "error": error}):
            return False
        studies.note(session, item.study_id, now, "delivery_dead", f"{item.peer}: {error}")
        if _is_newest(session, item):
            reason = studies.not_reached(item.peer, error)
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


def _passage(session: Session, item: DueDelivery, now: datetime) -> Passage | None:
    """Return the steps of a study whose newest report was just delivered; None: it was delivered before."""
    study = session.get_one(Study, item.study_id)
    report, *before = session.scalars(
        select(Report).where(Report.study_id == item.study_id).order_by(Report.id.desc()).limit(2)
    ).all()
    was_delivered = exists().where(
        History.study_id == item.study_id, History.event == StudyState.DELIVERED, History.at >= report.created_at
    )
    if session.scalar(select(was_delivered)):
        return None
    is_old = any(study.last_received_at <= one.created_at for one in before)
    return Passage(
        last_image_at=None if is_old else study.last_received_at,
        completed_at=study.completed_at,
        reported_at=report.created_at,
        delivered_at=now,
    )


def _answer(session: Session, item: DueDelivery, values: dict[str, object]) -> bool:
    return leases.answer(session, Delivery, item.delivery_id, item.token, DeliveryState.SENDING, values)


def _is_replaced(session: Session, item: DueDelivery) -> bool:
    """Return whether the peer gets a newer report of the study: the one that was on its way meanwhile is outdated."""
    own = select(Delivery.report_id).where(Delivery.id == item.delivery_id).scalar_subquery()
    newer = exists().where(
        Delivery.report_id == Report.id,
        Report.study_id == item.study_id,
        Report.id > own,
        Delivery.peer == item.peer,
    )
    return bool(session.scalar(select(newer)))


def _is_newest(session: Session, item: DueDelivery) -> bool:
    newest = session.scalar(
        select(Report.sop_instance_uid).where(Report.study_id == item.study_id).order_by(Report.id.desc()).limit(1)
    )
    return newest == item.sop_instance_uid


def _is_owed(session: Session, item: DueDelivery) -> bool:
    own = select(Delivery.report_id).where(Delivery.id == item.delivery_id).scalar_subquery()
    owed = (*OWED, DeliveryState.DEAD)
    rows = session.scalars(select(Delivery.id).where(Delivery.report_id == own, Delivery.state.in_(owed)).limit(1))
    return rows.first() is not None
