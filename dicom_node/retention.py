"""Retention: images of studies that were delivered long ago are removed; what the ledger knows of them stays.

Those that were delivered first go first: by age, and, where the disk runs full, before their time. What a person or a
peer may still need is never touched: a study that is not delivered, or has a report that waits for one of its peers.
Nor is what a peer was promised to find here, before its time.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy import ColumnElement, and_, case, exists, select, update
from sqlalchemy.orm import Session

from dicom_node.audit import StudyContent
from dicom_node.clock import Clock
from dicom_node.errors import StoreError
from dicom_node.identity import UID
from dicom_node.ledger import studies
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.schema import OWED, Delivery, DeliveryState, Instance, Report, Study, StudyState
from dicom_node.settings import Retention
from dicom_node.store import QUARANTINE, InstanceStore, Leftover
from dicom_node.transfers import patient_id_of

log = structlog.get_logger(__name__)

_OWED = (*OWED, DeliveryState.DEAD)

_USED = case((Study.last_received_at > Study.delivered_at, Study.last_received_at), else_=Study.delivered_at)
_AGE = case((and_(Study.committed_at.is_not(None), Study.committed_at > _USED), Study.committed_at), else_=_USED)
"""What age counts from: images that were sent again, for a person to look at or to analyse again, are young again, and
so are those that a peer was promised to find here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Purged:
    """A study whose images were removed, or would be."""

    study_instance_uid: str
    delivered_at: datetime
    num_bytes: int
    error: str = ""
    """Why some are left; they are tried again with the orphans."""


Tell = Callable[[StudyContent], None]
"""Hears of the images that go, before they do."""


def tell_nobody(_content: StudyContent) -> None:
    """Tell nobody."""


def purge(
    sessions: Sessions,
    store: InstanceStore,
    settings: Retention,
    clock: Clock,
    *,
    room: int = 0,
    dry_run: bool = False,
    tell: Tell = tell_nobody,
) -> list[Purged]:
    """Remove the images of every study that was delivered, and last committed to, more than `settings.days` ago (0
    days: of none), and of younger ones until `room` bytes are free.

    Reports, rows and whatever was not delivered stay.
    """
    before = clock() - timedelta(days=settings.days)
    wanted = room - store.free_bytes()
    if settings.days == 0 and wanted <= 0:
        return []
    purged: list[Purged] = []
    # Where there is room, the young are not even listed: they are the most.
    candidates = _delivered(sessions, None if wanted > 0 else before)
    for study_id, study_uid, delivered_at, age_from, is_promised in candidates:
        is_old = settings.days > 0 and age_from < before
        if not is_old and wanted <= 0:
            break  # the others are younger
        if not is_old and is_promised:
            continue
        num_bytes = store.study_bytes(UID(study_uid))
        error = "" if dry_run else _purge(sessions, store, study_id, UID(study_uid), num_bytes, age_from, clock, tell)
        if error is None:
            continue
        left = store.study_bytes(UID(study_uid)) if error else 0
        wanted -= num_bytes - left  # by what was removed: not every file system says at once what is free
        purged.append(Purged(study_instance_uid=study_uid, delivered_at=delivered_at, num_bytes=num_bytes, error=error))
    return purged


def purge_quarantine(
    store: InstanceStore, settings: Retention, clock: Clock, *, dry_run: bool = False
) -> list[Leftover]:
    """Remove what was set aside more than `settings.quarantine_days` ago (0 days: nothing): its sender knows that it
    was refused."""
    if settings.quarantine_days == 0:
        return []
    before = (clock() - timedelta(days=settings.quarantine_days)).timestamp()
    old = [
        Leftover(path=path, num_bytes=status.st_size)
        for path, status in store.files(QUARANTINE)
        if status.st_mtime < before
    ]
    return old if dry_run else [_removed(store, one) for one in old]


def _removed(store: InstanceStore, one: Leftover) -> Leftover:
    try:
        store.remove(one.path)
    except OSError as error:
        log.error("purge_failed", path=one.path, reason=error.strerror)
        return replace(one, error=error.strerror or type(error).__name__)
    log.info("quarantined_removed", path=one.path, bytes=one.num_bytes)
    return one


def _may_go() -> tuple[ColumnElement[bool], ...]:
    is_owed = exists().where(Delivery.report_id == Report.id, Report.study_id == Study.id, Delivery.state.in_(_OWED))
    return Study.state == StudyState.DELIVERED, Study.purged_at.is_(None), Study.delivered_at.is_not(None), ~is_owed


def _delivered(
    sessions: Sessions, before: datetime | None = None
) -> Sequence[tuple[int, str, datetime, datetime, bool]]:
    """Return what may go, the oldest first: id, Study Instance UID, when it was delivered, what age counts from, and
    whether a peer was promised to find it here; with `before`, only what is older."""
    columns = select(Study.id, Study.study_instance_uid, Study.delivered_at, _AGE, Study.committed_at)
    statement = columns.where(*_may_go()).order_by(_AGE, Study.id)
    if before is not None:
        statement = statement.where(Study.delivered_at < before, before > _AGE)  # the first for the index
    with reading(sessions) as session:
        rows = session.execute(statement).all()
    return [
        (id_, uid, delivered_at, age_from, committed_at is not None)
        for id_, uid, delivered_at, age_from, committed_at in rows
        if delivered_at is not None
    ]


def _purge(
    sessions: Sessions,
    store: InstanceStore,
    study_id: int,
    study_uid: UID,
    num_bytes: int,
    age_from: datetime,
    clock: Clock,
    tell: Tell,
) -> str | None:
    """Remove the images of a study; return why some are left, None if it may not go any more."""
    now = clock()
    # First the word, then the deed: a crash between the two leaves files that no row refers to, which are found and
    # removed, and no row whose file is gone without a word.
    with sessions.begin() as session:
        marked = session.scalar(
            update(Study)
            # Promised to a peer, or sent again, since it was listed: it is young again.
            .where(Study.id == study_id, *_may_go(), age_from >= _AGE)
            .values(purged_at=now)
            .returning(Study.id)
            .execution_options(synchronize_session=False)
        )
        if marked is None:
            return None
    with sessions.begin() as session:
        # While the row is held: a late instance waits, then finds its file gone and writes it again.
        study = studies.lock(session, study_id)
        if study is None or study.purged_at is None:
            return None  # a late instance was quicker
        tell(_content(session, store, study_id, study_uid))  # rather twice than never
        try:
            store.remove_study(study_uid)
        except StoreError as error:
            log.error("purge_failed", study=study_id, reason=str(error))
            return str(error)
        studies.note(session, study_id, now, "study_purged", f"{num_bytes} bytes of images removed")
    try:
        # Nobody who receives waits for that: what comes in this moment is put there again once it is missed.
        store.remove_shared_study(study_uid)
    except StoreError as error:
        log.error("purge_failed", study=study_id, reason=str(error))
        return str(error)
    log.info("study_purged", study=study_id, bytes=num_bytes)
    return ""


def _content(session: Session, store: InstanceStore, study_id: int, study_uid: str) -> StudyContent:
    instances = session.execute(
        select(Instance.sop_class_uid, Instance.path).where(Instance.study_id == study_id).order_by(Instance.id)
    ).all()
    patient_ids = (patient_id_of(store.path(path)) for _, path in instances)
    return StudyContent(
        study_uid=study_uid,
        patient_id=next(filter(None, patient_ids), ""),
        num_instances=Counter(sop_class for sop_class, _ in instances),
    )
