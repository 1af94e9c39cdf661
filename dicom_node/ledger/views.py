"""What the ledger shows to people and programs: the JSON of `dicom-node study` and of the web page."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from typing_extensions import TypedDict  # typing's own does not tell pydantic enough before Python 3.12

from dicom_node.errors import UnknownStudy
from dicom_node.identity import UID
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.reports import WrittenPicture, pictures_of
from dicom_node.ledger.schema import Delivery, History, Instance, InstanceState, Pledge, Report, Study, StudyState

Row = TypeVar("Row", Instance, Report, History)

_BATCH = 200  # studies whose rows are read at once


class NotAnalysedJson(TypedDict):
    """An instance without a number."""

    sop_instance_uid: str
    reason: str


class PictureJson(TypedDict):
    """A picture of a report; its file goes with the images of the study, and the path is empty when that goes on."""

    kind: str
    sop_instance_uid: str
    path: str


class ReportJson(TypedDict):
    """A report that was written."""

    sop_instance_uid: str
    path: str
    supersedes: str | None
    revision: int
    created_at: str
    pictures: list[PictureJson]


class DeliveryJson(TypedDict):
    """A report's way to one peer."""

    peer: str
    report: str
    state: str
    attempts: int
    error: str | None
    commitment: str | None
    """Whether the peer has committed to it (`PledgeState`); None: it was not asked."""


class HistoryJson(TypedDict):
    """What happened."""

    at: str
    event: str
    detail: str


class StudyJson(TypedDict):
    """One study; the first twelve names are a contract with other people's scripts."""

    study_instance_uid: str
    state: str
    received_at: str
    completed_at: str | None
    instances: int
    loops: int
    loops_analysed: int
    not_analysed: list[NotAnalysedJson]
    results: list[dict[str, Any]]
    reports: list[ReportJson]
    deliveries: list[DeliveryJson]
    error: str | None
    revision: int
    last_received_at: str
    delivered_at: str | None
    purged_at: str | None
    not_measured: list[dict[str, Any]]
    cart: list[dict[str, Any]]
    ensemble: dict[str, Any] | None
    history: list[HistoryJson]


def study_json(sessions: Sessions, study_uid: UID, *, data_dir: Path | None = None) -> StudyJson:
    """Return one study.

    Args:
        data_dir: paths of reports are given below it; None: relative to it.

    Raises:
        UnknownStudy: the ledger does not hold it.
    """
    with reading(sessions) as session:
        study = session.scalar(select(Study).where(Study.study_instance_uid == study_uid))
        if study is None:
            raise UnknownStudy(f"no study {study_uid} in the ledger")
        return _documents(session, [study], data_dir)[0]


def studies_json(
    sessions: Sessions,
    state: StudyState | None = None,
    *,
    limit: int | None = None,
    data_dir: Path | None = None,
) -> list[StudyJson]:
    """Return the studies, of one state or of all, the newest first."""
    statement = select(Study).order_by(Study.last_received_at.desc(), Study.id.desc()).limit(limit)
    if state is not None:
        statement = statement.where(Study.state == state)
    with reading(sessions) as session:
        found = session.scalars(statement).all()
        documents: list[StudyJson] = []
        for start in range(0, len(found), _BATCH):
            documents += _documents(session, found[start : start + _BATCH], data_dir)
        return documents


def count_by_state(sessions: Sessions) -> dict[StudyState, int]:
    """Return the number of studies in each state, zeros included."""
    with reading(sessions) as session:
        rows = session.execute(select(Study.state, func.count()).group_by(Study.state)).all()
    counts = {StudyState(state): number for state, number in rows}
    return {state: counts.get(state, 0) for state in StudyState}


def _documents(session: Session, found: Sequence[Study], data_dir: Path | None) -> list[StudyJson]:
    ids = [study.id for study in found]
    instances = _by_study(
        session.scalars(select(Instance).where(Instance.study_id.in_(ids), Instance.is_current).order_by(Instance.id))
    )
    reports = _by_study(session.scalars(select(Report).where(Report.study_id.in_(ids)).order_by(Report.id)))
    history = _by_study(session.scalars(select(History).where(History.study_id.in_(ids)).order_by(History.id)))
    deliveries: dict[int, list[DeliveryJson]] = defaultdict(list)
    for delivery, study_id, report_uid, commitment in session.execute(
        select(Delivery, Report.study_id, Report.sop_instance_uid, Pledge.state)
        .join(Report, Report.id == Delivery.report_id)
        .outerjoin(Pledge, Pledge.delivery_id == Delivery.id)
        .where(Report.study_id.in_(ids))
        .order_by(Delivery.id)
    ):
        deliveries[study_id].append(_delivery(delivery, report_uid, commitment))
    pictures = pictures_of(session, [one.id for own in reports.values() for one in own])
    return [
        _document(
            study,
            instances[study.id],
            [_report(one, pictures[one.id], data_dir) for one in reports[study.id]],
            reports[study.id][-1].findings if reports[study.id] else {},
            deliveries[study.id],
            history[study.id],
        )
        for study in found
    ]


def _by_study(rows: Iterable[Row]) -> dict[int, list[Row]]:
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.study_id].append(row)
    return groups


def _document(
    study: Study,
    instances: Sequence[Instance],
    reports: list[ReportJson],
    findings: Mapping[str, Any],
    deliveries: list[DeliveryJson],
    history: Sequence[History],
) -> StudyJson:
    without_number = (InstanceState.NOT_ANALYSED, InstanceState.FAILED)
    loops = [instance for instance in instances if instance.is_loop]
    return {
        "study_instance_uid": study.study_instance_uid,
        "state": study.state,
        "received_at": _z(study.received_at),
        "completed_at": _z_or_none(study.completed_at),
        "instances": len(instances),
        "loops": len(loops),
        "loops_analysed": sum(loop.state == InstanceState.ANALYSED for loop in loops),
        "not_analysed": [
            {"sop_instance_uid": instance.sop_instance_uid, "reason": instance.reason or ""}
            for instance in instances
            if instance.state in without_number
        ],
        "results": list(findings.get("results", [])),
        "reports": reports,
        "deliveries": deliveries,
        "error": study.error,
        "revision": study.revision,
        "last_received_at": _z(study.last_received_at),
        "delivered_at": _z_or_none(study.delivered_at),
        "purged_at": _z_or_none(study.purged_at),
        "not_measured": list(findings.get("not_measured", [])),
        "cart": list(findings.get("cart", [])),
        "ensemble": findings.get("ensemble"),
        "history": [{"at": _z(line.at), "event": line.event, "detail": line.detail} for line in history],
    }


def _report(report: Report, pictures: Sequence[WrittenPicture], data_dir: Path | None) -> ReportJson:
    return {
        "sop_instance_uid": report.sop_instance_uid,
        "path": _path(report.path, data_dir),
        "supersedes": report.supersedes,
        "revision": report.revision,
        "created_at": _z(report.created_at),
        "pictures": [
            {"kind": one.kind, "sop_instance_uid": one.sop_instance_uid, "path": _path(one.path, data_dir)}
            for one in pictures
        ],
    }


def _delivery(delivery: Delivery, report_uid: str, commitment: str | None) -> DeliveryJson:
    return {
        "peer": delivery.peer,
        "report": report_uid,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "error": delivery.error,
        "commitment": commitment,
    }


def _path(relative: str, data_dir: Path | None) -> str:
    return relative if data_dir is None or not relative else str(data_dir / relative)


def _z(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _z_or_none(at: datetime | None) -> str | None:
    return None if at is None else _z(at)
