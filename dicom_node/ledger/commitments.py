"""Commitments: what peers asked the node to commit to, until they have heard the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.commitment import Reference, Report, Request
from dicom_node.identity import UID
from dicom_node.ledger import leases, studies
from dicom_node.ledger.claims import make_token
from dicom_node.ledger.engine import Sessions, insert_or_ignore
from dicom_node.ledger.schema import Commitment, CommitmentState, Instance, Study

log = structlog.get_logger(__name__)

_AT_ONCE = 500  # UIDs in one question
GIVE_UP_ATTEMPTS = 20
"""So often a peer is tried, however late it is, unless it is four times as late."""
_OPEN = (CommitmentState.WAITING, CommitmentState.REPORTING)


@dataclass(frozen=True, kw_only=True, slots=True)
class DueCommitment:
    """One request whose answer a peer is to hear, on lease."""

    commitment_id: int
    token: str
    """The fence."""
    calling_ae: str
    request: Request
    attempt: int
    """0 on the association that asked, 1 at the first on a new one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldInstance:
    """An instance as the ledger knows it."""

    study_id: int
    sop_class_uid: str
    path: str
    """Relative to data_dir."""
    sha256: str
    num_bytes: int
    is_purged: bool
    """Retention has removed the images of its study."""


def record(
    session: Session, calling_ae: str, request: Request, lease: timedelta, now: datetime
) -> DueCommitment | None:
    """Keep a request, on lease to the caller, who reports it; asked again, it is reported again.

    Returns:
        None: the peer has used this Transaction UID for other instances; nothing changed.
    """
    token = make_token(calling_ae)
    instances = [list(one) for one in request.references]
    row = {
        "calling_ae": calling_ae,
        "transaction_uid": request.transaction_uid,
        "instances": instances,
        "state": CommitmentState.WAITING,
        "next_attempt_at": now,
        "created_at": now,
    }
    insert_or_ignore(session, Commitment, row)
    kept = session.scalars(
        select(Commitment)
        .where(Commitment.calling_ae == calling_ae, Commitment.transaction_uid == request.transaction_uid)
        .with_for_update()
    ).one()
    if kept.instances != instances:
        return None
    kept.state, kept.created_at, kept.error = CommitmentState.REPORTING, now, None
    kept.attempts, kept.lease_token, kept.lease_until = 0, token, now + lease
    return _due(kept, token)


def due(sessions: Sessions, calling_ae: str, *, limit: int, lease: timedelta, clock: Clock) -> list[DueCommitment]:
    """Lease what a peer is to hear now, oldest first; each attempt is counted before it is made."""
    token, now = make_token(calling_ae), clock()
    with sessions.begin() as session:
        found = session.scalars(
            select(Commitment)
            .where(
                Commitment.calling_ae == calling_ae,
                Commitment.state.in_(_OPEN),  # lets the index leave out the rest
                or_(
                    and_(Commitment.state == CommitmentState.WAITING, Commitment.next_attempt_at <= now),
                    and_(Commitment.state == CommitmentState.REPORTING, Commitment.lease_until < now),
                ),
            )
            .order_by(Commitment.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        for one in found:
            one.state, one.lease_token, one.lease_until = CommitmentState.REPORTING, token, now + lease
            one.attempts += 1
        return [_due(one, token) for one in found]


def hold(sessions: Sessions, uids: Sequence[UID], clock: Clock) -> dict[UID, HeldInstance]:
    """Return the instances that are here, and begin the wait of retention anew for their studies.

    From here on their files stay: what was removed before this is seen, and nothing is removed between this and the
    report to the peer.
    """
    found: dict[UID, HeldInstance] = {}
    with sessions.begin() as session:
        for start in range(0, len(uids), _AT_ONCE):
            some = select(Instance.study_id).where(
                Instance.sop_instance_uid.in_(uids[start : start + _AT_ONCE]), Instance.is_current
            )
            for study_id in sorted(session.scalars(some.distinct())):
                study = studies.lock(session, study_id)
                assert study is not None
                study.committed_at = clock()
        for start in range(0, len(uids), _AT_ONCE):
            rows = session.execute(
                select(Instance, Study.purged_at)
                .join(Study, Study.id == Instance.study_id)
                .where(Instance.sop_instance_uid.in_(uids[start : start + _AT_ONCE]), Instance.is_current)
            )
            for instance, purged_at in rows:
                found[UID(instance.sop_instance_uid)] = HeldInstance(
                    study_id=instance.study_id,
                    sop_class_uid=instance.sop_class_uid,
                    path=instance.path,
                    sha256=instance.sha256,
                    num_bytes=instance.num_bytes,
                    is_purged=purged_at is not None,
                )
    return found


def reported(sessions: Sessions, item: DueCommitment, report: Report, study_ids: Sequence[int], clock: Clock) -> bool:
    """Record that the peer has heard the report, in the history of its studies too. False: the fence is lost."""
    now = clock()
    num_asked = len(item.request.references)
    told = f"{item.calling_ae}: {num_asked - len(report.failed)} of {num_asked} instances"
    with sessions.begin() as session:
        values = {"state": CommitmentState.REPORTED, "reported_at": now, "error": None}
        if not _answer(session, item, values):
            return False
        for study_id in study_ids:
            studies.note(session, study_id, now, "commitment_reported", told)
    return True


def retry_later(sessions: Sessions, item: DueCommitment, error: str, next_attempt_at: datetime) -> bool:
    """Record why the peer could not be told, and when it is tried next. False: the fence is lost."""
    values = {"state": CommitmentState.WAITING, "next_attempt_at": next_attempt_at, "error": error}
    with sessions.begin() as session:
        return _answer(session, item, values)


def renew(sessions: Sessions, item: DueCommitment, lease: timedelta, clock: Clock) -> bool:
    """Prolong the lease. False: the fence is lost."""
    values = {"state": CommitmentState.REPORTING, "lease_token": item.token, "lease_until": clock() + lease}
    with sessions.begin() as session:
        return _answer(session, item, values)


def give_up(sessions: Sessions, after: timedelta, clock: Clock) -> int:
    """Give up what no peer could be told for so long, each with its ERROR; return how much that was."""
    now = clock()
    with sessions.begin() as session:
        given_up = session.scalars(
            update(Commitment)
            .where(
                Commitment.state.in_(_OPEN),
                Commitment.created_at < now - after,
                # A clock that was set forward, or a machine that was off, is no reason: it must have been tried.
                or_(Commitment.attempts >= GIVE_UP_ATTEMPTS, Commitment.created_at < now - 4 * after),
            )
            .values(state=CommitmentState.GIVEN_UP, lease_token=None, lease_until=None)
            .returning(Commitment)
            .execution_options(synchronize_session=False)
        ).all()
    for one in given_up:
        log.error("commitment_not_reported", peer=one.calling_ae, transaction=one.transaction_uid,
                  reason=one.error or "it was never tried")  # fmt: skip
    return len(given_up)


def _due(row: Commitment, token: str) -> DueCommitment:
    references = tuple(Reference(UID(sop_class), UID(sop_uid)) for sop_class, sop_uid in row.instances)
    return DueCommitment(
        commitment_id=row.id,
        token=token,
        calling_ae=row.calling_ae,
        request=Request(transaction_uid=UID(row.transaction_uid), references=references),
        attempt=row.attempts,
    )


def _answer(session: Session, item: DueCommitment, values: dict[str, object]) -> bool:
    return leases.answer(session, Commitment, item.commitment_id, item.token, CommitmentState.REPORTING, values)
