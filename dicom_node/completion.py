"""Completion: the clock of the node. Quiet studies become complete; what a dead worker held is taken back.

DICOM knows no end of a study: it counts as complete when nothing new came for the quiet period, or for a few seconds
after its sender named exactly what is here of it (`ledger.manifests`); a late instance opens it again.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from sqlalchemy import and_, exists, or_, select, update
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.ledger import studies
from dicom_node.ledger.claims import MAX_ATTEMPTS
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import Instance, InstanceState, Study, StudyState

log = structlog.get_logger(__name__)

RING_AGAIN = timedelta(seconds=5)
"""A study with work that nobody was called for in this time is rung for again: so long a lost message costs."""

MANIFEST_QUIET = timedelta(seconds=5)
"""A study whose list is whole is complete once no new instance has arrived for this long: one that is on its way then
would cost a revision."""

_RINGS_A_TICK = 100  # a backlog without workers must not fill the broker; the longest unrung come first
_LOST = "worker_lost"
_LOST_TEXT = f"the analysis of this instance failed {MAX_ATTEMPTS} times (worker lost)"
_REPORT_LOST = f"the report could not be written: {MAX_ATTEMPTS} attempts failed (worker lost)"


def tick(sessions: Sessions, clock: Clock, quiet: timedelta, draft_after: timedelta | None = None) -> list[int]:
    """Move on what time moves on, and return the ids of the studies to ring for, after the commit.

    Several nodes may tick on one ledger: each step is a compare-and-set.

    Args:
        sessions: the ledger.
        clock: the node's.
        quiet: a study is complete when nothing came for so long.
        draft_after: a worker is called to draft its report when nothing came for so long; None: none is.
    """
    now = clock()
    with sessions.begin() as session:
        ring = {*_take_back_instances(session, now)}
    with sessions.begin() as session:
        ring |= {*_take_back_reports(session, now)}
        ring |= {*_complete_quiet(session, now, quiet)}
    with sessions.begin() as session:
        ring |= {*_forgotten(session, now)}
        if draft_after is not None:
            ring |= {*_quiet_for(session, now, draft_after)}
        _mark_rung(session, ring, now)
    return sorted(ring)


def _complete_quiet(session: Session, now: datetime, quiet: timedelta) -> list[int]:
    is_quiet = Study.last_received_at <= now - quiet
    is_listed = and_(Study.manifest_at >= Study.last_received_at, Study.manifest_at <= now - MANIFEST_QUIET)
    completed = session.execute(
        update(Study)
        .where(Study.state == StudyState.RECEIVING, or_(is_quiet, is_listed))
        .values(state=StudyState.ANALYSING, completed_at=now)
        .returning(Study.id, Study.last_received_at)
        .execution_options(synchronize_session=False)
    ).all()
    for study_id, last_received_at in completed:
        why = f"quiet for {quiet.total_seconds():g} s" if last_received_at <= now - quiet else "its list is whole"
        studies.note(session, study_id, now, StudyState.ANALYSING, why)
        log.info("study_completed", study=study_id)
    return [study_id for study_id, _ in completed]


def _take_back_instances(session: Session, now: datetime) -> list[int]:
    expired = (Instance.state == InstanceState.LEASED, Instance.lease_until < now)
    again = session.scalars(
        update(Instance)
        .where(*expired, Instance.attempts < MAX_ATTEMPTS)
        .values(state=InstanceState.PENDING, lease_token=None, lease_until=None)
        .returning(Instance.study_id)
        .execution_options(synchronize_session=False)
    ).all()
    given_up = session.execute(
        update(Instance)
        .where(*expired, Instance.attempts >= MAX_ATTEMPTS)
        .values(state=InstanceState.FAILED, reason_code=_LOST, reason=_LOST_TEXT, lease_token=None, lease_until=None)
        .returning(Instance.study_id, Instance.sop_instance_uid)
        .execution_options(synchronize_session=False)
    ).all()
    for study_id in again:
        log.warning("instance_lease_expired", study=study_id)
    for study_id, sop_uid in given_up:
        studies.note(session, study_id, now, "instance_failed", f"{sop_uid}: {_LOST_TEXT}")
        log.error("instance_failed", study=study_id, instance=sop_uid)
    return [*again, *(study_id for study_id, _ in given_up)]


def _take_back_reports(session: Session, now: datetime) -> list[int]:
    expired = session.scalars(
        select(Study)
        .where(Study.state == StudyState.REPORTING, Study.lease_until < now)
        .with_for_update(key_share=True, skip_locked=True)
    ).all()
    again = []
    for study in expired:
        is_lost = study.attempts >= MAX_ATTEMPTS
        studies.move(
            session,
            study.id,
            come_from=[StudyState.REPORTING],
            to=StudyState.FAILED if is_lost else StudyState.ANALYSING,
            at=now,
            detail=_REPORT_LOST if is_lost else "the worker that wrote the report was lost",
            token=study.lease_token,
            values={"error": _REPORT_LOST} if is_lost else None,
        )
        if is_lost:
            log.error("study_failed", study=study.id, reason=_REPORT_LOST)
        else:
            log.warning("report_lease_expired", study=study.id)
            again.append(study.id)
    return again


def _forgotten(session: Session, now: datetime) -> list[int]:
    """Return studies that a worker could serve now and that nobody was called for in a while."""
    current = and_(Instance.study_id == Study.id, Instance.is_current)
    has_waiting = exists().where(current, Instance.state == InstanceState.PENDING)
    has_leased = exists().where(current, Instance.state == InstanceState.LEASED)
    return list(
        session.scalars(
            select(Study.id)
            .where(
                Study.state.in_([StudyState.RECEIVING, StudyState.ANALYSING]),
                or_(has_waiting, and_(Study.state == StudyState.ANALYSING, ~has_leased)),
                or_(Study.rung_at.is_(None), Study.rung_at <= now - RING_AGAIN),
            )
            .order_by(Study.rung_at.asc().nulls_first(), Study.id)
            .limit(_RINGS_A_TICK)
        )
    )


def _quiet_for(session: Session, now: datetime, so_long: timedelta) -> Sequence[int]:
    """Return studies that may be complete soon, and that nobody was called for since they fell quiet."""
    return session.scalars(
        select(Study.id)
        .where(
            Study.state == StudyState.RECEIVING,
            Study.last_received_at <= now - so_long,
            or_(Study.rung_at.is_(None), Study.rung_at <= now - so_long),
        )
        .order_by(Study.last_received_at)
        .limit(_RINGS_A_TICK)
    ).all()


def _mark_rung(session: Session, ids: set[int], now: datetime) -> None:
    if ids:
        session.execute(
            update(Study)
            .where(Study.id.in_(sorted(ids)))
            .values(rung_at=now)
            .execution_options(synchronize_session=False)
        )
