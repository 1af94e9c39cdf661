"""The files that the work needs, on this machine: where there is an object store they come from there, or do not."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from dicom_node.clock import Clock
from dicom_node.errors import ObjectDiffers, ObjectLost, ReportError
from dicom_node.ledger import shares
from dicom_node.ledger.claims import Claimed
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.reports import EarlierReport, JobInstance, ReportJob
from dicom_node.ledger.schema import InstanceState
from dicom_node.store import Borrow
from worker.compose import Earlier, Material, Subject
from worker.findings import to_cart
from worker.loops import AnalysedLoop, RefusedLoop, Verdict

log = structlog.get_logger(__name__)


def files_of(
    claimed: Sequence[Claimed], borrow: Borrow, sessions: Sessions, clock: Clock, step: Callable[[], None]
) -> list[tuple[Claimed, Path]]:
    """Return the claimed instances whose files are here, each with its path; the others were given back.

    Raises:
        StoreError: nothing can be fetched now, which is no fault of the instances.
    """
    found = []
    for one in claimed:
        step()
        try:
            found.append((one, borrow(one.path, one.content)))
        except (ObjectLost, ObjectDiffers) as error:
            log.warning("object_missed", instance=one.sop_instance_uid, attempt=one.attempt, reason=str(error))
            # What is not there is no attempt. Other bytes are: they may come from wherever the object was written.
            if shares.give_back(sessions, one, clock, counts=isinstance(error, ObjectDiffers)):
                log.error("instance_failed", instance=one.sop_instance_uid)
    return found


def material_of(job: ReportJob, borrow: Borrow, sessions: Sessions, step: Callable[[], None]) -> Material:
    """Return what a report is made of; its files are here.

    Raises:
        ReportError: a file is gone for good.
        StoreError: one cannot be fetched now.
    """
    gone = [one.sop_instance_uid for one in job.instances if one.reason_code == shares.LOST]
    if gone:
        raise ReportError(f"the file of {gone[0]} is gone from the node's disk; send it again")
    paths: dict[str, Path] = {}
    for one in job.instances:
        if one.path:
            step()
            paths[one.sop_instance_uid] = _path(one, borrow, sessions)
    return Material(
        study_instance_uid=job.study_instance_uid,
        revision=job.revision,
        predecessor=job.predecessor,
        subjects=tuple(_subject(one, paths) for one in job.instances),
        earlier=_earlier(job.earlier, borrow, is_needed=len(paths) < len(job.instances)),
    )


def _path(one: JobInstance, borrow: Borrow, sessions: Sessions) -> Path:
    try:
        return borrow(one.path, one.content)
    except (ObjectLost, ObjectDiffers):
        shares.missed(sessions, one.instance_id)
        raise


def _earlier(report: EarlierReport | None, borrow: Borrow, *, is_needed: bool) -> Earlier | None:
    """Return the report before this one; its file, where images are gone."""
    if report is None:
        return None
    path = None
    if is_needed:
        try:
            path = borrow(report.path)
        except ObjectLost as error:
            raise ReportError(f"images were removed, and the earlier report is gone: {error}") from error
    return Earlier(path=path, cart=to_cart(report.findings))


def _subject(one: JobInstance, paths: Mapping[str, Path]) -> Subject:
    verdict: Verdict
    if one.outputs is not None:
        verdict = AnalysedLoop.from_json(one.outputs)
    elif one.state is InstanceState.ANALYSED:
        verdict = RefusedLoop(code="removed", reason="its images were removed before the present networks saw it")
    else:
        verdict = RefusedLoop(code=one.reason_code or "failed", reason=one.reason or "the analysis failed")
    return Subject(
        sop_instance_uid=one.sop_instance_uid,
        sop_class_uid=one.sop_class_uid,
        series_instance_uid=one.series_instance_uid,
        path=paths.get(one.sop_instance_uid),
        verdict=verdict,
        was_given_up=one.outputs is None and one.state in (InstanceState.ANALYSED, InstanceState.FAILED),
        num_frames=one.num_frames,
    )
