"""Shares: which instances are in the object store. A worker claims none that is not, where there is an object store."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.ledger import studies
from dicom_node.ledger.claims import MAX_ATTEMPTS, Claimed, end_lease
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.schema import Instance, InstanceState, Study

LOST = "lost"
"""Reason of an instance whose file is gone."""

DIFFERS = "object_differs"
"""Reason of an instance that the object store gave other bytes for, each time."""

_LOST_TEXT = "its file is gone from the node's disk and from the object store; send it again"
_DIFFERS_TEXT = f"the object store gave other bytes than were received, {MAX_ATTEMPTS} times"
_HAS_IMAGES = exists().where(Study.id == Instance.study_id, Study.purged_at.is_(None))


@dataclass(frozen=True, kw_only=True, slots=True)
class Unshared:
    """An instance that the object store has not got yet."""

    instance_id: int
    study_id: int
    sop_instance_uid: str
    path: str
    """Relative to data_dir."""
    is_removed: bool
    """Retention removed its file: there is nothing to put there."""


def num_waiting(session: Session) -> int:
    """Return how many instances workers wait for and the object store has not got yet."""
    waiting = Instance.shared_at.is_(None), Instance.state == InstanceState.PENDING
    return session.scalar(select(func.count()).select_from(Instance).where(*waiting)) or 0


def unshared(sessions: Sessions, limit: int, apart_from: Collection[int] = ()) -> Sequence[Unshared]:
    """Return what is to be put into the object store: what a worker waits for, in the order of its arrival; if there is
    nothing, what was analysed before there was an object store, for a report that takes it up again."""
    statement = (
        select(Instance.id, Instance.study_id, Instance.sop_instance_uid, Instance.path, Study.purged_at)
        .join(Study, Study.id == Instance.study_id)
        .where(Instance.shared_at.is_(None))
        .order_by(Instance.state, Instance.id)  # as the index has them
        .limit(limit)
    )
    if apart_from:
        statement = statement.where(Instance.id.not_in(apart_from))
    waited_for = statement.where(Instance.state == InstanceState.PENDING)
    with reading(sessions) as session:
        rows = session.execute(waited_for).all() or session.execute(statement).all()
    return [
        Unshared(
            instance_id=id_,
            study_id=study_id,
            sop_instance_uid=sop_uid,
            path=path,
            is_removed=purged_at is not None or not path,
        )
        for id_, study_id, sop_uid, path, purged_at in rows
    ]


def shared(sessions: Sessions, done: Sequence[Unshared], clock: Clock) -> list[int]:
    """Record that the object store has these, or need not have them; return the studies that a worker may go on with.

    What was removed or came again meanwhile is looked at once more.
    """
    put = [one.instance_id for one in done if not one.is_removed]
    removed = [one.instance_id for one in done if one.is_removed]
    mark = update(Instance).values(shared_at=clock()).execution_options(synchronize_session=False)
    with sessions.begin() as session:
        marked = session.scalars(
            mark.where(Instance.id.in_(put), Instance.path != "", _HAS_IMAGES).returning(Instance.study_id)
        ).all()
        session.execute(mark.where(Instance.id.in_(removed), or_(Instance.path == "", ~_HAS_IMAGES)))
    return sorted({*marked})


def lost(sessions: Sessions, one: Unshared, clock: Clock) -> bool:
    """Give up an instance whose file nobody has; return False if it was removed, or came again, meanwhile."""
    with sessions.begin() as session:
        study = studies.lock(session, one.study_id)
        given_up = session.scalar(
            update(Instance)
            .where(Instance.id == one.instance_id, Instance.shared_at.is_(None), Instance.path == one.path, _HAS_IMAGES)
            .values(
                state=InstanceState.FAILED,
                reason_code=LOST,
                reason=_LOST_TEXT,
                lease_token=None,
                lease_until=None,
                shared_at=clock(),
            )
            .returning(Instance.id)
            .execution_options(synchronize_session=False)
        )
        if study is None or given_up is None:
            return False
        studies.note(session, one.study_id, clock(), "instance_failed", f"{one.sop_instance_uid}: {_LOST_TEXT}")
    return True


def missed(sessions: Sessions, instance_id: int) -> None:
    """Let the node put an instance into the object store again: it is not there, or not as it was received."""
    with sessions.begin() as session:
        session.execute(
            update(Instance)
            .where(Instance.id == instance_id)
            .values(shared_at=None)
            .execution_options(synchronize_session=False)
        )


def give_back(sessions: Sessions, claimed: Claimed, clock: Clock, *, counts: bool) -> bool:
    """Give back a claimed instance that the object store does not give, and let the node put it there again.

    Args:
        sessions: the ledger.
        claimed: the instance.
        clock: the node's.
        counts: it was an attempt; the last of them gives the instance up.

    Returns:
        Whether it is given up.
    """
    is_last = counts and claimed.attempt >= MAX_ATTEMPTS
    answer: dict[str, object] = {"state": InstanceState.PENDING, "attempts": claimed.attempt - (not counts)}
    if is_last:
        answer = {"state": InstanceState.FAILED, "reason_code": DIFFERS, "reason": _DIFFERS_TEXT}
    with sessions.begin() as session:
        study_id = end_lease(session, claimed, {**answer, "shared_at": None})
        if study_id is None or not is_last:
            return False
        studies.note(session, study_id, clock(), "instance_failed", f"{claimed.sop_instance_uid}: {_DIFFERS_TEXT}")
    return True
