"""Claims: a worker takes instances of a study on lease, and gives each back with an answer.

The fence is the token of the claim: whoever does not hold it any more changes nothing.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.ledger import studies
from dicom_node.ledger.engine import Sessions, insert_or_ignore, reading
from dicom_node.ledger.schema import Instance, InstanceState, Result, Study, StudyState
from dicom_node.store import Content

MAX_ATTEMPTS = 3
"""Claims of one instance, or of one revision's report, before it is given up."""

_OWNER_CHARACTERS = 31  # with "/" and a UUID's 32 digits: the 64 of the column
_OPEN = (StudyState.RECEIVING, StudyState.ANALYSING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """One instance on lease."""

    instance_id: int
    sop_instance_uid: str
    path: str
    """Relative to data_dir."""
    content: Content
    attempt: int
    """1 at the first claim."""
    token: str
    """The fence, shared by all instances of one claim."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysed:
    """The instance carries numbers."""

    outputs: dict[str, Any]
    """What the ensemble says of it, as JSON without NaN."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotAnalysed:
    """The instance carries no number."""

    code: str
    """Of the closed set of reasons."""
    reason: str
    """In words that a cardiologist understands."""


Outcome = Analysed | NotAnalysed


def make_token(owner: str) -> str:
    """Return a new fence; `owner` is in it for the eyes of a person only."""
    return f"{owner[:_OWNER_CHARACTERS]}/{uuid.uuid4().hex}"


def claim(
    sessions: Sessions,
    study_id: int,
    owner: str,
    limit: int,
    lease: timedelta,
    clock: Clock,
    *,
    only_shared: bool = False,
) -> list[Claimed]:
    """Lease up to `limit` waiting instances of a study, loops first; each attempt is counted before data is touched.

    An instance whose earlier attempt ended without an answer comes last and alone: should it kill the worker
    again, it takes no neighbour with it. Empty list: nothing to do now. `only_shared`: none that is not in the object
    store yet.
    """
    token = make_token(owner)
    with sessions.begin() as session:
        ids = _waiting(session, study_id, limit, only_shared)
        if not ids:
            return []
        rows = session.execute(
            update(Instance)
            .where(Instance.id.in_(ids), Instance.state == InstanceState.PENDING)
            .values(
                state=InstanceState.LEASED,
                attempts=Instance.attempts + 1,
                lease_token=token,
                lease_until=clock() + lease,
            )
            .returning(
                Instance.id,
                Instance.sop_instance_uid,
                Instance.path,
                Instance.sha256,
                Instance.num_bytes,
                Instance.attempts,
            )
            .execution_options(synchronize_session=False)
        ).all()
    order = {instance_id: position for position, instance_id in enumerate(ids)}
    return [
        Claimed(
            instance_id=id_,
            sop_instance_uid=sop,
            path=path,
            content=Content(sha256=sha256, num_bytes=num_bytes),
            attempt=attempt,
            token=token,
        )
        for id_, sop, path, sha256, num_bytes, attempt in sorted(rows, key=lambda row: order[row[0]])
    ]


def _waiting(session: Session, study_id: int, limit: int, only_shared: bool) -> Sequence[int]:
    waiting = (
        select(Instance.id)
        .join(Study, Study.id == Instance.study_id)
        .where(
            Instance.study_id == study_id,
            Instance.state == InstanceState.PENDING,
            Instance.is_current,
            Study.state.in_(_OPEN),
        )
        .with_for_update(skip_locked=True, of=Instance)
    )
    if only_shared:
        waiting = waiting.where(Instance.shared_at.is_not(None))
    fresh = waiting.where(Instance.attempts == 0).order_by(Instance.is_loop.desc(), Instance.id).limit(limit)
    tried = waiting.where(Instance.attempts > 0).order_by(Instance.attempts, Instance.id).limit(1)
    return session.scalars(fresh).all() or session.scalars(tried).all()


def renew(sessions: Sessions, token: str, lease: timedelta, clock: Clock) -> int:
    """Prolong everything that is held under `token`, instances or a report; return how much that still is."""
    until = clock() + lease
    with sessions.begin() as session:
        instances = session.scalars(
            update(Instance)
            .where(Instance.lease_token == token, Instance.state == InstanceState.LEASED)
            .values(lease_until=until)
            .returning(Instance.id)
            .execution_options(synchronize_session=False)
        ).all()
        reports = session.scalars(
            update(Study)
            .where(Study.lease_token == token, Study.state == StudyState.REPORTING)
            .values(lease_until=until)
            .returning(Study.id)
            .execution_options(synchronize_session=False)
        ).all()
    return len(instances) + len(reports)


def end_lease(session: Session, claimed: Claimed, answer: Mapping[str, object]) -> int | None:
    """Give a claimed instance these values and end its lease; return its study, or None, and nothing changed: the lease
    went to another."""
    return session.scalar(
        update(Instance)
        .where(
            Instance.id == claimed.instance_id,
            Instance.lease_token == claimed.token,
            Instance.state == InstanceState.LEASED,
        )
        .values({**answer, "lease_token": None, "lease_until": None})
        .returning(Instance.study_id)
        .execution_options(synchronize_session=False)
    )


def finish(sessions: Sessions, claimed: Claimed, ensemble_digest: str, outcome: Outcome, clock: Clock) -> bool:
    """Record the answer on a claimed instance; return False, and change nothing, if the lease went to another.

    It takes the place of what this ensemble said of the instance before.
    """
    if isinstance(outcome, Analysed):
        answer: dict[str, object] = {"state": InstanceState.ANALYSED, "reason_code": None, "reason": None}
    else:
        answer = {"state": InstanceState.NOT_ANALYSED, "reason_code": outcome.code, "reason": outcome.reason}
    with sessions.begin() as session:
        if end_lease(session, claimed, answer) is None:
            return False
        if isinstance(outcome, Analysed):
            row = {
                "instance_id": claimed.instance_id,
                "ensemble_digest": ensemble_digest,
                "outputs": outcome.outputs,
                "created_at": clock(),
            }
            if insert_or_ignore(session, Result, row) is None:
                session.execute(
                    update(Result)
                    .where(Result.instance_id == claimed.instance_id, Result.ensemble_digest == ensemble_digest)
                    .values(outputs=outcome.outputs, created_at=row["created_at"])
                    .execution_options(synchronize_session=False)
                )
    return True


def release(
    sessions: Sessions, token: str, clock: Clock, *, why: str = "the worker stopped", wait: timedelta = timedelta(0)
) -> None:
    """Give back unharmed, as if never claimed, what is held under `token`: instances or a report.

    Args:
        sessions: the ledger.
        token: the fence.
        clock: the node's.
        why: for the history of a report's study.
        wait: how much later than usual somebody is called for that report again.
    """
    with sessions.begin() as session:
        session.execute(
            update(Instance)
            .where(Instance.lease_token == token, Instance.state == InstanceState.LEASED)
            .values(state=InstanceState.PENDING, attempts=Instance.attempts - 1, lease_token=None, lease_until=None)
            .execution_options(synchronize_session=False)
        )
        held = session.scalar(
            select(Study)
            .where(Study.lease_token == token, Study.state == StudyState.REPORTING)
            .with_for_update(key_share=True)
        )
        if held is not None:
            now = clock()
            studies.move(
                session,
                held.id,
                come_from=[StudyState.REPORTING],
                to=StudyState.ANALYSING,
                at=now,
                detail=f"the report was put off: {why}",
                token=token,
                values={"attempts": held.attempts - 1, "rung_at": now + wait},
            )


def prolong_all(sessions: Sessions, until: datetime) -> int:
    """Let no lease end before `until`; return how many that concerned. For when nobody could renew."""
    number = 0
    for table, state in ((Instance, InstanceState.LEASED), (Study, StudyState.REPORTING)):
        with sessions.begin() as session:
            found = session.scalars(
                update(table)
                .where(table.state == state, table.lease_until < until)
                .values(lease_until=until)
                .returning(table.id)
                .execution_options(synchronize_session=False)
            ).all()
            number += len(found)
    return number


def drained(sessions: Sessions, study_id: int) -> bool:
    """Return whether every current instance of the study has its answer."""
    with reading(sessions) as session:
        return not has_open_work(session, study_id)


def has_open_work(session: Session, study_id: int) -> bool:
    """Return whether a current instance of the study still waits or is on lease."""
    unanswered = exists().where(
        Instance.study_id == study_id,
        Instance.is_current,
        Instance.state.in_([InstanceState.PENDING, InstanceState.LEASED]),
    )
    return bool(session.scalar(select(unanswered)))
