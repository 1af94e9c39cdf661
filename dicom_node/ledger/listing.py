"""The studies page by page, the newest first: a page costs the same however many studies there are.

A page goes on where the last one ended: after a time and an id, not after so many rows, so that nothing is counted and
a study that arrives meanwhile moves nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import and_, case, func, or_, select
from sqlalchemy.orm import Session

from dicom_node.errors import InvalidCursor
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.schema import Instance, InstanceState, Report, Study, StudyState

PAGE = 50
"""Studies on a page."""

_CURSOR = re.compile(r"(\d{8}T\d{12})-(\d{1,18})", re.ASCII)
_MOMENT = "%Y%m%dT%H%M%S%f"
_ENDED = (StudyState.DELIVERED,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A study in the list."""

    study_instance_uid: str
    state: StudyState
    error: str | None
    received_at: datetime
    last_received_at: datetime
    num_instances: int
    num_loops: int
    num_analysed: int
    findings: Mapping[str, Any]
    """Of its newest report; empty: there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A page of studies."""

    studies: Sequence[Listed]
    next: str | None
    """Where the next page begins; None: this is the last."""


def listing(
    sessions: Sessions, state: StudyState | None = None, cursor: str | None = None, limit: int = PAGE
) -> Listing:
    """Return a page of studies, of one state or of all.

    Args:
        sessions: of the ledger.
        state: of the studies; None: of any.
        cursor: `next` of the page before; None: the first page.
        limit: how many are on the page.

    Raises:
        InvalidCursor: no page ended like this.
    """
    statement = select(Study).order_by(Study.last_received_at.desc(), Study.id.desc()).limit(limit + 1)
    if state is not None:
        statement = statement.where(Study.state == state)
    if cursor is not None:
        at, study_id = _parse(cursor)
        # The first half is for the index, the second for those of one moment.
        statement = statement.where(Study.last_received_at <= at, or_(Study.last_received_at < at, Study.id < study_id))
    with reading(sessions) as session:
        found = session.scalars(statement).all()
        shown, rest = found[:limit], found[limit:]
        return Listing(studies=_listed(session, shown), next=_cursor(shown[-1]) if rest else None)


def count_unfinished(sessions: Sessions) -> dict[StudyState, int]:
    """Return the number of studies in each state but `delivered`, which nearly all reach and stay in."""
    states = [state for state in StudyState if state not in _ENDED]
    with reading(sessions) as session:
        rows = session.execute(
            select(Study.state, func.count()).where(Study.state.in_(states)).group_by(Study.state)
        ).all()
    counts = {StudyState(state): number for state, number in rows}
    return {state: counts.get(state, 0) for state in states}


def _listed(session: Session, studies: Sequence[Study]) -> Sequence[Listed]:
    ids = [study.id for study in studies]
    counts = {
        study_id: (instances, loops, analysed)
        for study_id, instances, loops, analysed in session.execute(
            select(
                Instance.study_id,
                func.count(),
                func.sum(case((Instance.is_loop, 1), else_=0)),
                func.sum(case((and_(Instance.is_loop, Instance.state == InstanceState.ANALYSED), 1), else_=0)),
            )
            .where(Instance.study_id.in_(ids), Instance.is_current)
            .group_by(Instance.study_id)
        )
    }
    newest = select(func.max(Report.id)).where(Report.study_id.in_(ids)).group_by(Report.study_id)
    findings = {
        study_id: said
        for study_id, said in session.execute(select(Report.study_id, Report.findings).where(Report.id.in_(newest)))
    }
    listed = []
    for study in studies:
        num_instances, num_loops, num_analysed = counts.get(study.id, (0, 0, 0))
        listed.append(
            Listed(
                study_instance_uid=study.study_instance_uid,
                state=StudyState(study.state),
                error=study.error,
                received_at=study.received_at,
                last_received_at=study.last_received_at,
                num_instances=num_instances,
                num_loops=num_loops,
                num_analysed=num_analysed,
                findings=findings.get(study.id, {}),
            )
        )
    return listed


def _cursor(last: Study) -> str:
    return f"{last.last_received_at.astimezone(UTC).strftime(_MOMENT)}-{last.id}"


def _parse(cursor: str) -> tuple[datetime, int]:
    match = _CURSOR.fullmatch(cursor)
    try:
        if match is None:
            raise ValueError
        return datetime.strptime(match[1], _MOMENT).replace(tzinfo=UTC), int(match[2])
    except ValueError as error:
        raise InvalidCursor("no page of the list begins there") from error
