"""Drafts: the report of a study that is quiet but not complete yet, made by a worker that has nothing else to do.

Drawing and writing take longer than a cardiologist likes to wait, and half of the quiet period is long enough for both.
At completion any worker hands the draft in, if what it was made of is still the same (`reports.begin_report`); if
not, the report is made from the start. A draft has no lease and counts no attempt: it is begun once for what a study
holds, so that one at which a worker ends does not end the next worker too.
"""

from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, exists, or_, select

from dicom_node.clock import Clock
from dicom_node.ledger import studies
from dicom_node.ledger.claims import has_open_work, make_token
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.reports import ReportJob, WrittenReport, job_of, unseen
from dicom_node.ledger.schema import Draft, Instance, InstanceState, Study, StudyState


def begin_draft(
    sessions: Sessions, study_id: int, owner: str, quiet: timedelta, clock: Clock, ensemble_digest: str, made_with: str
) -> ReportJob | None:
    """Take the right to draft the report of a study that is still `receiving`.

    Args:
        sessions: the ledger.
        study_id: the study.
        owner: who drafts, for the eyes of a person.
        quiet: no instance must have come for so long.
        clock: the node's.
        ensemble_digest: the ensemble that must have seen every loop.
        made_with: what else the report depends on.

    Returns:
        None: it is too early, something has no answer yet, or this was drafted before, by whomever, to whatever end.
    """
    token = make_token(owner)
    with sessions.begin() as session:
        study = studies.lock(session, study_id)
        if study is None or study.state != StudyState.RECEIVING or study.last_received_at > clock() - quiet:
            return None
        if has_open_work(session, study_id) or session.scalar(select(exists(unseen(study_id, ensemble_digest)))):
            return None
        job = job_of(session, study, 0, token, ensemble_digest)
        substance = job.substance(made_with)
        draft = session.get(Draft, study_id)
        if draft is None:
            draft = Draft(study_id=study_id)
            session.add(draft)
        elif draft.substance == substance:
            return None
        draft.token, draft.substance, draft.report, draft.findings = token, substance, None, None
        return job


def record_draft(
    sessions: Sessions, job: ReportJob, report: WrittenReport, findings: dict[str, Any], name_files: Callable[[], None]
) -> bool:
    """Record a draft whose files are safe; `name_files` gives them their names while the study is held: nobody writes
    its report in that moment.

    Returns:
        False: the study is not `receiving` any more, or another draft was begun; the files have no names.
    """
    with sessions.begin() as session:
        study = studies.lock(session, job.study_id)
        draft = session.get(Draft, job.study_id)
        if study is None or study.state != StudyState.RECEIVING or draft is None or draft.token != job.token:
            return False
        name_files()
        draft.report, draft.findings = asdict(report), findings
    return True


def drop_draft(sessions: Sessions, job: ReportJob) -> None:
    """Give the right back: the draft was put off for something better to do, and may be begun again."""
    with sessions.begin() as session:
        session.execute(
            delete(Draft)
            .where(Draft.study_id == job.study_id, Draft.token == job.token)
            .execution_options(synchronize_session=False)
        )


def something_waits(sessions: Sessions, study_id: int) -> bool:
    """Return whether a worker is wanted for more than a draft of this study: by an instance, or by another report."""
    waiting = exists().where(
        Instance.state == InstanceState.PENDING,
        Instance.is_current,
        Instance.study_id == Study.id,
        Study.state.in_([StudyState.RECEIVING, StudyState.ANALYSING]),
    )
    complete = exists().where(Study.state == StudyState.ANALYSING, Study.id != study_id)
    with reading(sessions) as session:
        return bool(session.scalar(select(or_(waiting, complete))))
