"""Reports: one worker takes the right to write the report of a complete study, and records it with its deliveries."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, and_, delete, select, update
from sqlalchemy.orm import Session

from dicom_node.clock import Clock
from dicom_node.ledger import studies
from dicom_node.ledger.claims import has_open_work, make_token
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import (
    Delivery,
    DeliveryState,
    Draft,
    Instance,
    InstanceState,
    Picture,
    Report,
    Result,
    Study,
    StudyState,
)
from dicom_node.report.findings import Predecessor
from dicom_node.store import Content


@dataclass(frozen=True, kw_only=True, slots=True)
class JobInstance:
    """One current instance of the study and its answer."""

    instance_id: int
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    path: str
    """Relative to data_dir; empty: retention removed the file."""
    content: Content
    num_frames: int | None
    state: InstanceState
    """ANALYSED, NOT_ANALYSED or FAILED."""
    reason_code: str | None
    reason: str | None
    outputs: dict[str, Any] | None
    """What this ensemble said; None unless ANALYSED, or if retention removed the file before it could look."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportJob:
    """The right to write the report of one revision of a study."""

    study_id: int
    study_instance_uid: str
    revision: int
    attempt: int
    """1 at the first, MAX_ATTEMPTS at the last of this revision."""
    ensemble_digest: str
    token: str
    """The fence; renew it as claims are renewed (`claims.renew`), give it back by `claims.release`."""
    instances: tuple[JobInstance, ...]
    """All current instances, in the order of their arrival."""
    predecessor: Predecessor | None
    earlier: "EarlierReport | None"
    """The file of the predecessor and what it said."""
    draft: "Drafted | None" = None
    """The report, made of the same before the study was complete."""

    def substance(self, made_with: str) -> str:
        """Return the SHA-256 of all that the report depends on but for its dates; `made_with`: beside the ledger."""
        content = asdict(replace(self, token="", attempt=0, draft=None))
        return hashlib.sha256(json.dumps([content, made_with], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierReport:
    """What is left of images that retention removed."""

    path: str
    """Relative to data_dir."""
    findings: dict[str, Any]
    """The report as JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenPicture:
    """A picture of a report whose file is safe on disk."""

    kind: str
    sop_instance_uid: str
    sop_class_uid: str
    path: str
    """Relative to data_dir."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenReport:
    """A report whose file is safe on disk."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    path: str
    """Relative to data_dir."""
    pictures: tuple[WrittenPicture, ...] = ()
    """In the order in which they go out, before the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drafted:
    """A report that was made before its study was complete."""

    report: WrittenReport
    findings: dict[str, Any]
    """What it says, as JSON."""


def begin_report(
    sessions: Sessions,
    study_id: int,
    owner: str,
    lease: timedelta,
    clock: Clock,
    ensemble_digest: str,
    made_with: str = "",
) -> ReportJob | None:
    """Take the lease to write the report of a complete, drained study; the attempt is counted.

    Args:
        sessions: the ledger.
        study_id: the study.
        owner: who writes, for the eyes of a person.
        lease: how long.
        clock: the node's.
        ensemble_digest: the ensemble that must have seen every loop.
        made_with: what else the report depends on; a draft must have been made with the same.

    Returns:
        None: the study is not `analysing`, has open work, or another worker was quicker. Instances that this
        ensemble has not seen are then waiting again; claim them.
    """
    token, now = make_token(owner), clock()
    with sessions.begin() as session:
        study = studies.lock(session, study_id)
        if study is None or study.state != StudyState.ANALYSING or has_open_work(session, study_id):
            return None
        if _requeue_unseen(session, study_id, ensemble_digest):
            return None
        attempt = study.attempts + 1
        studies.move(
            session,
            study_id,
            come_from=[StudyState.ANALYSING],
            to=StudyState.REPORTING,
            at=now,
            detail=f"revision {study.revision}, attempt {attempt}",
            values={"lease_token": token, "lease_until": now + lease, "attempts": attempt},
        )
        job = job_of(session, study, attempt, token, ensemble_digest)
        return replace(job, draft=_drafted(session, job, made_with))


def job_of(session: Session, study: Study, attempt: int, token: str, ensemble_digest: str) -> ReportJob:
    """Return what the report of a (locked) study is made of now."""
    last = _last(session, study.id)
    return ReportJob(
        study_id=study.id,
        study_instance_uid=study.study_instance_uid,
        revision=study.revision,
        attempt=attempt,
        ensemble_digest=ensemble_digest,
        token=token,
        instances=_instances(session, study.id, ensemble_digest),
        predecessor=None if last is None else _predecessor(study, last),
        earlier=None if last is None else EarlierReport(path=last.path, findings=last.findings),
    )


def finish_report(
    sessions: Sessions,
    job: ReportJob,
    report: WrittenReport,
    findings: dict[str, Any],
    destinations: Sequence[str],
    clock: Clock,
) -> bool:
    """Record the report and the promise to deliver it, in one transaction.

    Args:
        findings: the report as JSON; its "results" are those of `dicom-node study --json`.
        destinations: names of the peers that receive it.

    Returns:
        False: the fence is lost (a late instance, or another worker); nothing changed, the file is nobody's.
    """
    now = clock()
    with sessions.begin() as session:
        to = StudyState.DELIVERING if destinations else StudyState.DELIVERED
        is_ours = studies.move(
            session,
            job.study_id,
            come_from=[StudyState.REPORTING],
            to=to,
            at=now,
            detail=f"report {report.sop_instance_uid}",
            token=job.token,
            values={"error": None} if destinations else {"error": None, "delivered_at": now},
        )
        if not is_ours:
            return False
        session.execute(delete(Draft).where(Draft.study_id == job.study_id))
        _supersede_waiting(session, job.study_id, destinations)
        row = Report(
            study_id=job.study_id,
            revision=job.revision,
            ensemble_digest=job.ensemble_digest,
            sop_instance_uid=report.sop_instance_uid,
            sop_class_uid=report.sop_class_uid,
            series_instance_uid=report.series_instance_uid,
            path=report.path,
            supersedes=job.predecessor.sop_instance_uid if job.predecessor else None,
            findings=findings,
            created_at=now,
        )
        session.add(row)
        session.flush()
        for one in report.pictures:
            session.add(
                Picture(
                    report_id=row.id,
                    kind=one.kind,
                    sop_instance_uid=one.sop_instance_uid,
                    sop_class_uid=one.sop_class_uid,
                    path=one.path,
                )
            )
            session.flush()  # one by one: their ids are their order
        for peer in destinations:
            session.add(
                Delivery(report_id=row.id, peer=peer, state=DeliveryState.WAITING, next_attempt_at=now, created_at=now)
            )
    return True


def pictures_of(session: Session, report_ids: Sequence[int]) -> Mapping[int, Sequence[WrittenPicture]]:
    """Return the pictures of each of these reports, in the order in which they go out; of one without, none."""
    pictures: dict[int, list[WrittenPicture]] = {report_id: [] for report_id in report_ids}
    for one in session.scalars(select(Picture).where(Picture.report_id.in_(report_ids)).order_by(Picture.id)):
        pictures[one.report_id].append(
            WrittenPicture(
                kind=one.kind, sop_instance_uid=one.sop_instance_uid, sop_class_uid=one.sop_class_uid, path=one.path
            )
        )
    return pictures


def fail_report(sessions: Sessions, job: ReportJob, reason: str, clock: Clock) -> bool:
    """Record that no report can be made, and why; return False, and change nothing, if the fence is lost."""
    with sessions.begin() as session:
        return studies.move(
            session,
            job.study_id,
            come_from=[StudyState.REPORTING],
            to=StudyState.FAILED,
            at=clock(),
            detail=reason,
            token=job.token,
            values={"error": reason},
        )


def unseen(study_id: int, ensemble_digest: str) -> Select[tuple[int]]:
    """Select the analysed instances of a study that this ensemble has not seen."""
    seen = select(Result.instance_id).where(Result.ensemble_digest == ensemble_digest)
    return select(Instance.id).where(
        Instance.study_id == study_id,
        Instance.is_current,
        Instance.state == InstanceState.ANALYSED,
        Instance.path != "",  # retention removed it: nobody can look any more
        Instance.id.not_in(seen.where(Result.instance_id == Instance.id)),
    )


def _requeue_unseen(session: Session, study_id: int, ensemble_digest: str) -> bool:
    requeued = session.scalars(
        update(Instance)
        .where(Instance.id.in_(unseen(study_id, ensemble_digest)))
        .values(state=InstanceState.PENDING, attempts=0)
        .returning(Instance.id)
        .execution_options(synchronize_session=False)
    ).all()
    return bool(requeued)


def _drafted(session: Session, job: ReportJob, made_with: str) -> Drafted | None:
    draft = session.get(Draft, job.study_id)
    if draft is None or draft.report is None or draft.findings is None or draft.substance != job.substance(made_with):
        return None
    pictures = tuple(WrittenPicture(**one) for one in draft.report["pictures"])
    return Drafted(report=WrittenReport(**{**draft.report, "pictures": pictures}), findings=draft.findings)


def _instances(session: Session, study_id: int, ensemble_digest: str) -> tuple[JobInstance, ...]:
    rows = session.execute(
        select(Instance, Result.outputs)
        .outerjoin(Result, and_(Result.instance_id == Instance.id, Result.ensemble_digest == ensemble_digest))
        .where(Instance.study_id == study_id, Instance.is_current)
        .order_by(Instance.id)
    ).all()
    return tuple(
        JobInstance(
            instance_id=instance.id,
            sop_instance_uid=instance.sop_instance_uid,
            sop_class_uid=instance.sop_class_uid,
            series_instance_uid=instance.series_instance_uid,
            transfer_syntax_uid=instance.transfer_syntax_uid,
            path=instance.path,
            content=Content(sha256=instance.sha256, num_bytes=instance.num_bytes),
            num_frames=instance.num_frames,
            state=InstanceState(instance.state),
            reason_code=instance.reason_code,
            reason=instance.reason,
            outputs=outputs if instance.state == InstanceState.ANALYSED else None,
        )
        for instance, outputs in rows
    )


def _last(session: Session, study_id: int) -> Report | None:
    return session.scalar(select(Report).where(Report.study_id == study_id).order_by(Report.id.desc()).limit(1))


def _predecessor(study: Study, last: Report) -> Predecessor:
    return Predecessor(
        study_instance_uid=study.study_instance_uid,
        series_instance_uid=last.series_instance_uid,
        sop_class_uid=last.sop_class_uid,
        sop_instance_uid=last.sop_instance_uid,
    )


def _supersede_waiting(session: Session, study_id: int, destinations: Sequence[str]) -> None:
    older = select(Report.id).where(Report.study_id == study_id)
    session.execute(
        update(Delivery)
        .where(
            Delivery.report_id.in_(older),
            Delivery.peer.in_(destinations),
            Delivery.state.in_([DeliveryState.WAITING, DeliveryState.DEAD]),
        )
        .values(state=DeliveryState.SUPERSEDED)
        .execution_options(synchronize_session=False)
    )
