"""Pledges: what peers are asked to commit to after a delivery, until they have answered."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.commitment import Reference, Report, Request
from dicom_node.identity import UID
from dicom_node.ledger import studies
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import (
    Delivery,
    DeliveryState,
    Pledge,
    PledgeState,
    PledgeTransaction,
    StudyState,
)
from dicom_node.ledger.schema import Report as ReportRow

log = structlog.get_logger(__name__)

MAX_FAILURES = 2
"""A report that a peer has not got is delivered once more; after this many times its delivery is a dead letter."""

GIVE_UP_ATTEMPTS = 20
"""So often a peer is asked, however late it is, unless it is four times as late."""
_OPEN = (PledgeState.WANTED, PledgeState.REQUESTED)
_ANSWERABLE = (*_OPEN, PledgeState.UNANSWERED)


@dataclass(frozen=True, kw_only=True, slots=True)
class DuePledge:
    """One report that a peer is to be asked for, in a transaction of its own."""

    pledge_id: int
    request: Request
    attempt: int
    """1 at the first."""


def want(session: Session, delivery_id: int, references: Sequence[Reference], now: datetime) -> None:
    """Ask for what was delivered, or delivered again; the report is the last of the references."""
    pledge = session.scalar(select(Pledge).where(Pledge.delivery_id == delivery_id))
    if pledge is None:
        pledge = Pledge(delivery_id=delivery_id, failures=0)
        session.add(pledge)
    pledge.instances = [list(one) for one in references]
    pledge.state, pledge.attempts, pledge.error = PledgeState.WANTED, 0, None
    pledge.next_at = pledge.created_at = now


def due(sessions: Sessions, peer: str, *, limit: int, lease: timedelta, clock: Clock) -> list[DuePledge]:
    """Begin a transaction for each report that `peer` is to be asked for now, oldest first; due again after `lease`.

    The transactions are committed before anybody is asked: a peer may answer at once, to another process.
    """
    now = clock()
    with sessions.begin() as session:
        found = session.scalars(
            select(Pledge)
            .join(Delivery, Delivery.id == Pledge.delivery_id)
            .where(Pledge.state.in_(_OPEN), Pledge.next_at <= now, Delivery.peer == peer)
            .order_by(Pledge.id)
            .limit(limit)
            .with_for_update(of=Pledge, skip_locked=True)
        ).all()
        begun = []
        for pledge in found:
            pledge.next_at = now + lease
            pledge.attempts += 1
            transaction = UID(f"2.25.{uuid.uuid4().int}")  # PS3.5 B.2
            session.add(PledgeTransaction(transaction_uid=transaction, pledge_id=pledge.id, asked_at=now))
            references = tuple(Reference(UID(sop_class), UID(sop_uid)) for sop_class, sop_uid in pledge.instances)
            request = Request(transaction_uid=transaction, references=references)
            begun.append(DuePledge(pledge_id=pledge.id, request=request, attempt=pledge.attempts))
        return begun


def requested(sessions: Sessions, item: DuePledge, ask_again_at: datetime) -> bool:
    """Record that the peer will answer. False: it has answered already."""
    return _update(sessions, item.pledge_id, PledgeState.REQUESTED, ask_again_at, None)


def ask_later(sessions: Sessions, item: DuePledge, error: str, at: datetime) -> bool:
    """Record why the peer could not be asked, and when it is tried next. False: it has answered already."""
    return _update(sessions, item.pledge_id, PledgeState.WANTED, at, error)


def answered(sessions: Sessions, report: Report, clock: Clock) -> bool:
    """Record a peer's answer and what follows from it; told twice is told once. False: no such transaction.

    The report committed to: done, whatever the peer says of pictures. Not committed to: it is delivered once more, and
    the second time its delivery is a dead letter and the study fails.
    """
    now = clock()
    dead_at = None
    with sessions.begin() as session:
        study_id = session.scalar(
            select(ReportRow.study_id)
            .join(Delivery, Delivery.report_id == ReportRow.id)
            .join(Pledge, Pledge.delivery_id == Delivery.id)
            .join(PledgeTransaction, PledgeTransaction.pledge_id == Pledge.id)
            .where(PledgeTransaction.transaction_uid == report.transaction_uid)
        )
        if study_id is None:
            return False
        studies.lock(session, study_id)
        transaction = session.get_one(PledgeTransaction, report.transaction_uid)
        if transaction.answered_at is not None:
            return True
        transaction.answered_at = now
        pledge = session.get_one(Pledge, transaction.pledge_id)
        delivery = session.get_one(Delivery, pledge.delivery_id)
        of_peer = f"{delivery.peer}: {pledge.instances[-1][1]}"
        if _is_committed(report, pledge):
            pledge.state, pledge.error = PledgeState.COMMITTED, None
            text = "; ".join([of_peer, *_without(report, pledge)])
            studies.note(session, study_id, now, "report_committed", text)
        elif (
            pledge.state in _ANSWERABLE and transaction.asked_at >= pledge.created_at
        ):  # not of before it was sent again
            error = f"the peer does not commit to the report ({_reason(report, pledge)})"
            pledge.state, pledge.error, pledge.failures = PledgeState.FAILED, error, pledge.failures + 1
            studies.note(session, study_id, now, "commitment_failed", f"{of_peer}: {error}")
            if _deliver_again_or_fail(session, study_id, pledge, delivery, now):
                dead_at = delivery.peer
    if dead_at is not None:
        log.error("delivery_dead", study=study_id, peer=dead_at, reason="the peer does not commit to the report")
    return True


def give_up(sessions: Sessions, after: timedelta, clock: Clock) -> int:
    """Give up what no peer has answered for so long, each with its ERROR; return how much that was."""
    now = clock()
    with sessions.begin() as session:
        late = session.scalars(
            select(Pledge.id)
            .where(
                Pledge.state.in_(_OPEN),
                Pledge.created_at < now - after,
                or_(Pledge.attempts >= GIVE_UP_ATTEMPTS, Pledge.created_at < now - 4 * after),
            )
            .order_by(Pledge.id)
        ).all()
    return sum(_give_up(sessions, pledge_id, None, now) for pledge_id in late)


def refuse(sessions: Sessions, item: DuePledge, error: str, clock: Clock) -> bool:
    """Give up what the peer will not commit to, however often it is asked, with its ERROR."""
    return _give_up(sessions, item.pledge_id, error, clock())


def _give_up(sessions: Sessions, pledge_id: int, error: str | None, now: datetime) -> bool:
    with sessions.begin() as session:
        pledge = session.scalars(
            update(Pledge)
            .where(Pledge.id == pledge_id, Pledge.state.in_(_OPEN))
            .values(state=PledgeState.UNANSWERED, **({} if error is None else {"error": error}))
            .returning(Pledge)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if pledge is None:
            return False
        peer, study_id = session.execute(
            select(Delivery.peer, ReportRow.study_id)
            .join(ReportRow, ReportRow.id == Delivery.report_id)
            .where(Delivery.id == pledge.delivery_id)
        ).one()
        reason = pledge.error or "the peer takes the request and never answers it"
        studies.note(session, study_id, now, "commitment_not_answered", f"{peer}: {pledge.instances[-1][1]}: {reason}")
    log.error("commitment_not_answered", study=study_id, peer=peer, reason=reason)
    return True


def _update(sessions: Sessions, pledge_id: int, state: PledgeState, next_at: datetime, error: str | None) -> bool:
    with sessions.begin() as session:
        open_still = session.scalar(
            update(Pledge)
            .where(Pledge.id == pledge_id, Pledge.state.in_(_OPEN))
            .values(state=state, next_at=next_at, error=error)
            .returning(Pledge.id)
            .execution_options(synchronize_session=False)
        )
    return open_still is not None


def _is_committed(report: Report, pledge: Pledge) -> bool:
    """Return whether the report is; of a peer that names no instance at all, all are."""
    uid = pledge.instances[-1][1]
    names = {one.sop_instance_uid for one in report.committed}
    return uid not in _failed(report) and (uid in names or not (names or report.failed))


def _failed(report: Report) -> dict[str, int]:
    return {one.sop_instance_uid: reason for one, reason in report.failed.items()}


def _reason(report: Report, pledge: Pledge) -> str:
    reason = _failed(report).get(pledge.instances[-1][1])
    return "it does not name it" if reason is None else f"failure reason 0x{reason:04X}"


def _without(report: Report, pledge: Pledge) -> list[str]:
    failed = _failed(report)
    return [f"without {uid}: failure reason 0x{failed[uid]:04X}" for _, uid in pledge.instances[:-1] if uid in failed]


def _deliver_again_or_fail(session: Session, study_id: int, pledge: Pledge, delivery: Delivery, now: datetime) -> bool:
    """Return whether the delivery is a dead letter now."""
    newest = session.scalar(
        select(ReportRow.id).where(ReportRow.study_id == study_id).order_by(ReportRow.id.desc()).limit(1)
    )
    if delivery.report_id != newest or delivery.state != DeliveryState.DELIVERED:
        return False  # another report has taken its place
    delivery.error = pledge.error
    if pledge.failures < MAX_FAILURES:
        delivery.state, delivery.delivered_at = DeliveryState.WAITING, None
        delivery.next_attempt_at = delivery.created_at = now
        studies.move(session, study_id, come_from=[StudyState.DELIVERED], to=StudyState.DELIVERING, at=now,
                     detail=f"{delivery.peer} has not got the report", values={"delivered_at": None})  # fmt: skip
        return False
    pledge.failures = 0  # a person who takes it up begins anew
    delivery.state = DeliveryState.DEAD
    reason = f"the report did not stay at {delivery.peer}: {pledge.error}"
    studies.move(session, study_id, come_from=[StudyState.DELIVERING, StudyState.DELIVERED], to=StudyState.FAILED,
                 at=now, detail=reason, values={"error": reason, "delivered_at": None})  # fmt: skip
    return True
