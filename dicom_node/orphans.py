"""Orphans: files that no row refers to, and rows whose file is not there.

A crash between a file and its row leaves the one, a disk that loses files the other. Both are looked for in small
pieces, for a store may hold millions of files. What is removed is looked at again under the lock that its writer
needs for the row: a file is renamed first, and its row committed after it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import PurePath
from stat import S_ISREG

import structlog
from pydicom import dcmread
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from dicom_node.clock import Clock, utc_now
from dicom_node.errors import StoreError
from dicom_node.identity import UID
from dicom_node.ledger.engine import Sessions, lock_name, reading
from dicom_node.ledger.schema import Instance, Picture, Report, Study, StudyState
from dicom_node.report.header import DAMAGE
from dicom_node.store import INCOMING, INSTANCES, PICTURES, PREVIEWS, REPORTS, InstanceStore, Leftover, preview_path

log = structlog.get_logger(__name__)

AGE = timedelta(hours=1)
"""What is younger may have its row in a moment."""

_BATCH = 500
_WITH_IMAGES = (INSTANCES, PREVIEWS, PICTURES)  # what goes with the images of a study
_SUFFIX = ".dcm"  # of all that the store names; what else a person put there is not ours


def orphans(
    sessions: Sessions, store: InstanceStore, clock: Clock = utc_now, older_than: timedelta = AGE
) -> Iterator[Leftover]:
    """Yield every file of the store that no row refers to; the images of a study that was purged count as such.

    Args:
        sessions: of the ledger.
        store: the files.
        clock: of the node.
        older_than: files that were written later are left out.
    """
    written_before = (clock() - older_than).timestamp()
    for folder, refer in _REFERRED.items():
        found = (
            Leftover(path=path, num_bytes=status.st_size)
            for path, status in store.files(folder)
            if path.endswith(_SUFFIX) and S_ISREG(status.st_mode) and status.st_mtime <= written_before
        )
        while group := list(islice(found, _BATCH)):
            with reading(sessions) as session:
                referred = refer(session, [PurePath(one.path) for one in group])
            yield from (one for one in group if one.path not in referred)
    for path, status in store.files(INCOMING):
        if status.st_mtime <= written_before:
            yield Leftover(path=path, num_bytes=status.st_size)


def missing(sessions: Sessions, store: InstanceStore) -> Iterator[str]:
    """Yield the path of every row whose file is not there although retention did not remove it; where there is an
    object store, reports and their pictures need be nowhere else."""
    received = (Instance, select(Instance.id, Instance.path).join(Study).where(Study.purged_at.is_(None)))
    written = (
        (Picture, select(Picture.id, Picture.path).join(Report).join(Study).where(Study.purged_at.is_(None))),
        (Report, select(Report.id, Report.path)),
    )
    for table, statement in (received, *(() if store.is_shared else written)):
        last = 0
        while rows := _some(sessions, statement.where(table.id > last, table.path != "").order_by(table.id)):
            yield from (path for _, path in rows if not store.exists(path))
            last = rows[-1][0]


def sweep(
    sessions: Sessions,
    store: InstanceStore,
    clock: Clock = utc_now,
    older_than: timedelta = AGE,
    *,
    dry_run: bool = False,
) -> list[Leftover]:
    """Remove the orphans, and return them; a file whose writer lives is none."""
    found = list(orphans(sessions, store, clock, older_than))
    if dry_run:
        return [*found, *_shared_orphans(sessions, store, dry_run=True)]
    dead = {*store.sweep()}
    removed = []
    for one in found:
        try:
            if one.path not in dead and not _removed(sessions, store, PurePath(one.path)):
                continue
        except OSError as error:
            log.error("purge_failed", path=one.path, reason=error.strerror)
            removed.append(replace(one, error=error.strerror or type(error).__name__))
            continue
        log.warning("orphan_removed", path=one.path, bytes=one.num_bytes)
        removed.append(one)
    store.remove_empty_folders((clock() - older_than).timestamp())
    return [*removed, *_shared_orphans(sessions, store, dry_run=False)]


def _some(sessions: Sessions, statement: Select[tuple[int, str]]) -> Sequence[tuple[int, str]]:
    with reading(sessions) as session:
        return [(row[0], row[1]) for row in session.execute(statement.limit(_BATCH))]


def _shared_orphans(sessions: Sessions, store: InstanceStore, *, dry_run: bool) -> list[Leftover]:
    """Remove from the object store what is left of studies that were purged, and return their folders.

    What no row knows stays: it may be another node's, in a bucket that was configured twice.
    """
    try:
        uids = sorted({uid for folder in _WITH_IMAGES for uid in store.shared_names(folder)})
        purged = [uid for start in range(0, len(uids), _BATCH) for uid in _purged(sessions, uids[start:][:_BATCH])]
        for uid in () if dry_run else purged:
            store.remove_shared_study(UID(uid))
            log.warning("orphan_removed", path=f"{INSTANCES}/{uid}", bytes=0)
    except StoreError as error:
        log.error("purge_failed", path=INSTANCES, reason=str(error))
        return [Leftover(path=INSTANCES, num_bytes=0, error=str(error))]
    return [Leftover(path=f"{INSTANCES}/{uid}", num_bytes=0) for uid in purged]


def _purged(sessions: Sessions, uids: Sequence[str]) -> Sequence[str]:
    with reading(sessions) as session:
        return session.scalars(
            select(Study.study_instance_uid).where(Study.study_instance_uid.in_(uids), Study.purged_at.is_not(None))
        ).all()


# --- which files rows refer to ---


def _instances(session: Session, paths: Sequence[PurePath]) -> set[str]:
    uids = [_instance_uid(path) for path in paths]
    return _all(
        session, select(Instance.path).join(Study).where(Instance.sop_instance_uid.in_(uids), Study.purged_at.is_(None))
    )


def _previews(session: Session, paths: Sequence[PurePath]) -> set[str]:
    return {preview_path(path) for path in _instances(session, paths) if path}


def _pictures(session: Session, paths: Sequence[PurePath]) -> set[str]:
    uids = [path.stem for path in paths]
    own = select(Picture.path).join(Report).join(Study)
    return _all(session, own.where(Picture.sop_instance_uid.in_(uids), Study.purged_at.is_(None)))


def _reports(session: Session, paths: Sequence[PurePath]) -> set[str]:
    return _all(session, select(Report.path).where(Report.sop_instance_uid.in_([path.stem for path in paths])))


def _all(session: Session, statement: Select[tuple[str]]) -> set[str]:
    return {*session.scalars(statement)}


_REFERRED: dict[str, Callable[[Session, Sequence[PurePath]], set[str]]] = {
    INSTANCES: _instances,
    PREVIEWS: _previews,
    PICTURES: _pictures,
    REPORTS: _reports,
}

_OF_INSTANCES = (INSTANCES, PREVIEWS)


def _instance_uid(path: PurePath) -> str:
    return path.stem.rpartition("-")[0]


# --- removal ---


def _removed(sessions: Sessions, store: InstanceStore, path: PurePath) -> bool:
    """Remove a file unless a row refers to it by now, or may do so in a moment; return whether it is gone."""
    folder = path.parts[0]
    if folder == INCOMING:
        return False  # its writer lives
    study_uid = _study_of_report(store, path) if folder == REPORTS else path.parts[1]
    with sessions.begin() as session:
        if folder in _OF_INSTANCES:
            lock_name(session, _instance_uid(path))  # as the intake does; it writes again what is gone by then
        study = session.scalar(
            select(Study).where(Study.study_instance_uid == study_uid).with_for_update(key_share=True)
        )
        # Who holds the lease of the report has perhaps renamed it, or a picture of it, and not yet committed.
        is_awaited = folder not in _OF_INSTANCES and study is not None and study.state == StudyState.REPORTING
        if is_awaited or str(path) in _REFERRED[folder](session, [path]):
            return False
        store.remove(str(path))
    return True


def _study_of_report(store: InstanceStore, path: PurePath) -> str:
    """Return whose report it is; nobody's, if it is damaged: then nobody is writing it either."""
    try:
        with store.path(str(path)).open("rb") as file:
            return str(dcmread(file, specific_tags=["StudyInstanceUID"]).get("StudyInstanceUID", ""))
    except (*DAMAGE, OSError):
        return ""
