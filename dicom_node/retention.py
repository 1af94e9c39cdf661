"""Retention: images of studies that were delivered long ago are removed; what the ledger knows of them stays."""

from dataclasses import dataclass
from datetime import timedelta

import structlog
from sqlalchemy import select, update

from dicom_node.clock import Clock
from dicom_node.identity import UID
from dicom_node.ledger import studies
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.schema import Study, StudyState
from dicom_node.settings import Retention
from dicom_node.store import InstanceStore

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Purged:
    """A study whose images were removed, or would be."""

    study_instance_uid: str
    num_bytes: int


def purge(
    sessions: Sessions, store: InstanceStore, settings: Retention, clock: Clock, *, dry_run: bool = False
) -> list[Purged]:
    """Remove the images of every study that was delivered more than `settings.days` ago; 0 days: of none.

    Reports, rows and whatever was not delivered stay.

    Raises:
        StoreError: the files of a study could not be removed; those of the earlier ones are.
    """
    if settings.days == 0:
        return []
    before = clock() - timedelta(days=settings.days)
    old = (Study.state == StudyState.DELIVERED, Study.delivered_at < before, Study.purged_at.is_(None))
    with reading(sessions) as session:
        found = session.execute(select(Study.id, Study.study_instance_uid).where(*old).order_by(Study.id)).all()
    purged = []
    for study_id, study_uid in found:
        num_bytes = store.study_bytes(UID(study_uid))
        if not dry_run:
            with sessions.begin() as session:
                # Files go while the row is held: a late instance waits, then finds its file gone and writes it again.
                marked = session.scalar(
                    update(Study).where(Study.id == study_id, *old).values(purged_at=clock()).returning(Study.id)
                )
                if marked is None:
                    continue
                studies.note(session, study_id, clock(), "study_purged", f"{num_bytes} bytes of images removed")
                store.remove_study(UID(study_uid))
            log.info("study_purged", study=study_id, bytes=num_bytes)
        purged.append(Purged(study_instance_uid=study_uid, num_bytes=num_bytes))
    return purged
