"""What a study holds, instance by instance, for the page that shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from dicom_node.identity import UID
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.reports import WrittenPicture, pictures_of
from dicom_node.ledger.schema import Instance, InstanceState, Report, Study
from dicom_node.ledger.studies import study_id_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A current instance."""

    sop_instance_uid: str
    path: str
    """Relative to data_dir; empty: retention removed the file."""
    num_frames: int | None
    is_loop: bool
    state: InstanceState
    reason: str | None
    """Why it has no result."""
    calling_ae: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """A report of the study, as the ledger has it."""

    sop_instance_uid: str
    revision: int
    ensemble_digest: str
    path: str
    findings: Mapping[str, Any]
    pictures: Sequence[WrittenPicture]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """All current instances in the order of their arrival, and every report, the newest last."""

    instances: Sequence[Held]
    reports: Sequence[Reported]

    def instance(self, sop_uid: str) -> Held | None:
        """Return the instance of this SOP Instance UID."""
        return next((one for one in self.instances if one.sop_instance_uid == sop_uid), None)

    def report(self, sop_uid: str) -> Reported | None:
        """Return the report of this SOP Instance UID."""
        return next((one for one in self.reports if one.sop_instance_uid == sop_uid), None)

    def picture(self, sop_uid: str) -> WrittenPicture | None:
        """Return the picture of this SOP Instance UID, of whichever report."""
        pictures = (picture for report in self.reports for picture in report.pictures)
        return next((one for one in pictures if one.sop_instance_uid == sop_uid), None)


def contents(sessions: Sessions, study_uid: UID) -> Contents:
    """Return what a study holds.

    Raises:
        UnknownStudy: the ledger does not hold it.
    """
    study_id = study_id_of(sessions, study_uid)
    with reading(sessions) as session:
        own = select(Instance).where(Instance.study_id == study_id, Instance.is_current).order_by(Instance.id)
        instances = session.scalars(own).all()
        reports = session.scalars(select(Report).where(Report.study_id == study_id).order_by(Report.id)).all()
        pictures = pictures_of(session, [one.id for one in reports])
    return Contents(
        instances=[
            Held(
                sop_instance_uid=one.sop_instance_uid,
                path=one.path,
                num_frames=one.num_frames,
                is_loop=one.is_loop,
                state=InstanceState(one.state),
                reason=one.reason,
                calling_ae=one.calling_ae,
            )
            for one in instances
        ],
        reports=[
            Reported(
                sop_instance_uid=one.sop_instance_uid,
                revision=one.revision,
                ensemble_digest=one.ensemble_digest,
                path=one.path,
                findings=one.findings,
                pictures=pictures[one.id],
            )
            for one in reports
        ],
    )


def path_of(sessions: Sessions, study_uid: UID, sop_uid: str) -> str:
    """Return the path of a study's current instance, relative to data_dir; empty: there is none, or no file of it."""
    wanted = (
        select(Instance.path)
        .join(Study, Study.id == Instance.study_id)
        .where(Study.study_instance_uid == study_uid, Instance.sop_instance_uid == sop_uid, Instance.is_current)
    )
    with reading(sessions) as session:
        return session.scalar(wanted) or ""
