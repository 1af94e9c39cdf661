"""A worker without a network: claims, answers and reports as the real one does."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from dicom_node.clock import Clock
from dicom_node.identity import UID, result_uid
from dicom_node.ledger import claims, reports
from dicom_node.ledger.claims import Analysed, Claimed
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.reports import ReportJob, WrittenPicture, WrittenReport

ENSEMBLE = "e" * 64
LEASE = timedelta(seconds=20)


class Analyst:
    """One worker process."""

    def __init__(self, sessions: Sessions, clock: Clock) -> None:
        self.sessions = sessions
        self.clock = clock

    def claim(self, study_id: int, limit: int = 8) -> list[Claimed]:
        """Claim up to `limit` instances."""
        return claims.claim(self.sessions, study_id, "analyst", limit, LEASE, self.clock)

    def answer(self, claimed: Claimed, outcome: claims.Outcome | None = None) -> bool:
        """Answer for one instance: analysed, unless told otherwise."""
        outcome = outcome or Analysed(outputs={"by": claimed.sop_instance_uid})
        return claims.finish(self.sessions, claimed, ENSEMBLE, outcome, self.clock)

    def drain(self, study_id: int) -> int:
        """Answer for everything that waits; return the number of answers."""
        number = 0
        while held := self.claim(study_id):
            number += sum(self.answer(claimed) for claimed in held)
        return number

    def begin(self, study_id: int, ensemble: str = ENSEMBLE) -> ReportJob | None:
        """Try to take the report."""
        return reports.begin_report(self.sessions, study_id, "analyst", LEASE, self.clock, ensemble)

    def write(
        self,
        job: ReportJob,
        destinations: Sequence[str] = (),
        results: Sequence[dict[str, Any]] = (),
        pictures: Sequence[WrittenPicture] = (),
    ) -> bool:
        """Record the report of a job."""
        sop_uid = result_uid(UID(job.study_instance_uid), job.revision, job.ensemble_digest, "sr")
        written = WrittenReport(
            sop_instance_uid=sop_uid,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33",
            series_instance_uid="1.2.826.0.1.7",
            path=f"reports/{sop_uid}.dcm",
            pictures=tuple(pictures),
        )
        findings = {"results": list(results)}
        return reports.finish_report(self.sessions, job, written, findings, destinations, self.clock)

    def report(
        self, study_id: int, destinations: Sequence[str] = (), pictures: Sequence[WrittenPicture] = ()
    ) -> ReportJob:
        """Drain a complete study and write its report."""
        self.drain(study_id)
        job = self.begin(study_id)
        assert job is not None
        assert self.write(job, destinations, pictures=pictures)
        return job
