"""Manifests: the list of instances in a peer's request for commitment says what a study consists of.

It is the one signal by which a scanner itself says what it has sent, whether the node commits or not. A list that names
exactly what is here of a study, at least two instances and all of them, lets the study be complete before its quiet
period ends: `completion` waits a few seconds, and on if another instance comes. Scanners also ask image by image or
series by series while they go on sending, and each image that came after the report would cost a revision: a list of
one, and a list of a part, therefore say nothing of the end.
"""

from collections.abc import Sequence
from datetime import datetime

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dicom_node.identity import UID
from dicom_node.ledger import studies
from dicom_node.ledger.schema import History, Instance

log = structlog.get_logger(__name__)

_AT_ONCE = 500  # UIDs in one question
_NAMED = 5  # missing UIDs in a line of history
_EVENT = "manifest"


def record(session: Session, calling_ae: str, uids: Sequence[UID], now: datetime) -> None:
    """Note a list in the history of its studies, and which of it is not here; mark the study that it names exactly."""
    here: dict[UID, int] = {}
    for start in range(0, len(uids), _AT_ONCE):
        rows = session.execute(
            select(Instance.sop_instance_uid, Instance.study_id).where(
                Instance.sop_instance_uid.in_(uids[start : start + _AT_ONCE]), Instance.is_current
            )
        )
        here |= {UID(sop_uid): study_id for sop_uid, study_id in rows}
    missing = [uid for uid in uids if uid not in here]
    log.info("manifest_received", peer=calling_ae, instances=len(uids), missing=len(missing))
    if len(uids) < 2 and not missing:
        return  # a scanner that asks image by image would fill the history
    study_ids = sorted(set(here.values()))
    for study_id in study_ids:
        num_here = sum(one == study_id for one in here.values())
        study = studies.lock(session, study_id)
        assert study is not None
        _note(session, study_id, now, _text(calling_ae, num_here, missing))
        if not missing and study_ids == [study_id] and num_here == _num_instances(session, study_id):
            study.manifest_at = max(now, study.last_received_at)


def _text(calling_ae: str, num_here: int, missing: Sequence[UID]) -> str:
    text = f"{calling_ae} names {num_here} instances that are here"
    if missing:
        rest = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        text += f"; manifest names {len(missing)} instances that did not arrive: {', '.join(missing[:_NAMED])}{rest}"
    return text


def _note(session: Session, study_id: int, now: datetime, text: str) -> None:
    """Add the line once: a scanner whose request is refused repeats it for days."""
    same = select(History.id).where(History.study_id == study_id, History.event == _EVENT, History.detail == text)
    if session.scalar(same.limit(1)) is None:
        studies.note(session, study_id, now, _EVENT, text)


def _num_instances(session: Session, study_id: int) -> int:
    counted = select(func.count()).select_from(Instance).where(Instance.study_id == study_id, Instance.is_current)
    return session.scalar(counted) or 0
