"""How the work stands: what waits, who has it, whom the node heard of last, and what failed. Each question is answered
from an index, or from the newest rows of a table: none gets slower as the ledger grows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.schema import (
    OWED,
    Delivery,
    DeliveryState,
    Instance,
    InstanceState,
    Report,
    Study,
    StudyState,
)

RECENT = 5000
"""Instances that are looked through for who sent one."""

_WITH_ERROR = (*OWED, DeliveryState.DEAD)


@dataclass(frozen=True, kw_only=True, slots=True)
class Queue:
    """What waits."""

    instances_pending: int
    instances_leased: int
    deliveries_waiting: int
    deliveries_dead: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A worker that holds work at the moment; one that waits for some is in no table."""

    owner: str
    """Machine and process."""
    num_instances: int
    is_reporting: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerContact:
    """What passed between the node and a peer."""

    last_instance_at: datetime | None
    """None: it sent none of the newest RECENT."""
    last_delivery_at: datetime | None
    num_waiting: int
    num_dead: int
    last_error: str | None
    """Of what it has not got yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A study, or an instance of one, that needs a person."""

    study_instance_uid: str
    reason: str | None
    at: datetime
    """When the study last got something."""
    sop_instance_uid: str | None = None
    """Of the instance; None: the study as a whole failed."""


def queue(sessions: Sessions) -> Queue:
    """Return how much waits."""
    states = [InstanceState.PENDING, InstanceState.LEASED]
    with reading(sessions) as session:
        instances = _counts(session, Instance.state, states)
        deliveries = _counts(session, Delivery.state, _WITH_ERROR)
    return Queue(
        instances_pending=instances.get(InstanceState.PENDING, 0),
        instances_leased=instances.get(InstanceState.LEASED, 0),
        deliveries_waiting=sum(deliveries.get(state, 0) for state in OWED),
        deliveries_dead=deliveries.get(DeliveryState.DEAD, 0),
    )


def holders(sessions: Sessions) -> list[Holder]:
    """Return who holds work."""
    with reading(sessions) as session:
        leased = session.execute(
            select(Instance.lease_token, func.count())
            .where(Instance.state == InstanceState.LEASED)
            .group_by(Instance.lease_token)
        ).all()
        reporting = session.scalars(select(Study.lease_token).where(Study.state == StudyState.REPORTING)).all()
    found: dict[str, tuple[int, bool]] = {}
    for token, number in [*((token, number) for token, number in leased), *((token, 0) for token in reporting)]:
        owner = (token or "").rpartition("/")[0] or "unknown"
        had, is_reporting = found.get(owner, (0, False))
        found[owner] = had + number, is_reporting or number == 0
    return [Holder(owner=one, num_instances=number, is_reporting=is_) for one, (number, is_) in sorted(found.items())]


def last_ensemble(sessions: Sessions) -> dict[str, Any] | None:
    """Return who wrote the newest report: name, version, digest, statement; None: there is no report."""
    with reading(sessions) as session:
        findings = session.scalar(select(Report.findings).order_by(Report.id.desc()).limit(1))
    return None if findings is None else findings.get("ensemble")


def contacts(sessions: Sessions, peers: Sequence[tuple[str, str]]) -> list[PeerContact]:
    """Return what passed between the node and these peers, each by its name and its AE title."""
    newest = select(Instance.calling_ae, Instance.received_at).order_by(Instance.id.desc()).limit(RECENT).subquery()
    last = select(newest.c.calling_ae, func.max(newest.c.received_at)).group_by(newest.c.calling_ae)
    with reading(sessions) as session:
        sent = {ae_title: at for ae_title, at in session.execute(last)}
        return [_contact(session, name, sent.get(ae_title)) for name, ae_title in peers]


def failures(sessions: Sessions, limit: int) -> list[Failure]:
    """Return the newest studies that failed, and the newest instances that were given up, at most `limit` of each."""
    with reading(sessions) as session:
        failed = session.execute(
            select(Study.study_instance_uid, Study.error, Study.last_received_at)
            .where(Study.state == StudyState.FAILED)
            .order_by(Study.last_received_at.desc())
            .limit(limit)
        ).all()
        given_up = session.execute(
            select(Study.study_instance_uid, Instance.reason, Study.last_received_at, Instance.sop_instance_uid)
            .join(Study, Study.id == Instance.study_id)
            .where(Instance.state == InstanceState.FAILED, Instance.is_current)
            .order_by(Instance.id.desc())
            .limit(limit)
        ).all()
    return [
        *(Failure(study_instance_uid=uid, reason=reason, at=at) for uid, reason, at in failed),
        *(
            Failure(study_instance_uid=uid, reason=reason, at=at, sop_instance_uid=sop_uid)
            for uid, reason, at, sop_uid in given_up
        ),
    ]


def _counts(session: Session, column: Any, states: Sequence[str]) -> dict[str, int]:
    rows = session.execute(select(column, func.count()).where(column.in_(states)).group_by(column)).all()
    return {state: number for state, number in rows}


def _contact(session: Session, peer: str, last_instance_at: datetime | None) -> PeerContact:
    of_peer = select(Delivery).where(Delivery.peer == peer)
    newest = Delivery.next_attempt_at.desc()
    # By when they were due, which is as the index has it; which was the last of these few is then looked at.
    delivered = session.scalars(
        of_peer.where(Delivery.state == DeliveryState.DELIVERED).order_by(newest).limit(20)
    ).all()
    waiting = session.execute(
        select(Delivery.state, func.count())
        .where(Delivery.peer == peer, Delivery.state.in_(_WITH_ERROR))
        .group_by(Delivery.state)
    ).all()
    counts = {state: number for state, number in waiting}
    errors = [
        (one.next_attempt_at, one.error)
        for state in _WITH_ERROR
        for one in session.scalars(
            of_peer.where(Delivery.state == state, Delivery.error.is_not(None)).order_by(newest).limit(1)
        )
    ]
    return PeerContact(
        last_instance_at=last_instance_at,
        last_delivery_at=max((one.delivered_at for one in delivered if one.delivered_at is not None), default=None),
        num_waiting=sum(counts.get(state, 0) for state in OWED),
        num_dead=counts.get(DeliveryState.DEAD, 0),
        last_error=max(errors)[1] if errors else None,
    )
