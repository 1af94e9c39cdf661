"""A study is drained: its loops are claimed, looked at, and, when it is complete, its report is written."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from dicom_node.clock import Clock, utc_now
from dicom_node.dispatch import Bell
from dicom_node.errors import OutOfSpace, ReportError
from dicom_node.identity import UID
from dicom_node.ledger import claims, reports
from dicom_node.ledger.claims import MAX_ATTEMPTS, Analysed, Claimed, NotAnalysed
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.reports import JobInstance, ReportJob
from dicom_node.ledger.schema import InstanceState
from dicom_node.settings import Report as ReportSection
from dicom_node.settings import Settings
from dicom_node.store import InstanceStore
from worker.compose import Material, Subject, compose
from worker.engine import CurrentEngine, Engine, load_engine
from worker.leases import beating
from worker.loops import AnalysedLoop, RefusedLoop, Verdict, analyse_files
from worker.settings import Limits, ensemble_path, limits

log = structlog.get_logger(__name__)

Ring = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Analyst:
    """One worker process: the networks it holds and the ledger it serves."""

    current_engine: Callable[[], Engine]
    """Asked between two batches: the networks to use from now on."""
    sessions: Sessions
    store: InstanceStore
    destinations: tuple[str, ...]
    """Names of the peers that receive reports."""
    report: ReportSection
    """What is made beside a report."""
    limits: Limits
    ring: Ring
    owner: str
    """Who this is, for the eyes of a person in the ledger."""
    clock: Clock = utc_now

    def drain(self, study_id: int) -> None:
        """Analyse what waits in the study; after the last loop of a complete study, write its report.

        May run twice, late, or beside another worker on the same study: loops are claimed, and one claim wins.
        """
        deadline = time.monotonic() + self.limits.budget.total_seconds()
        while True:
            engine = self.current_engine()  # before the claim: loading another one may take longer than a lease
            claimed = self._claim(study_id)
            if not claimed:
                if self._try_report(study_id, engine):
                    return
                claimed = self._claim(study_id)  # loops that this ensemble had not seen wait again
                if not claimed:
                    return  # another worker holds the rest; who is last ends the study
            self._analyse(claimed, engine)
            if time.monotonic() > deadline:
                self.ring(study_id)  # other studies wait too
                return

    def _claim(self, study_id: int) -> list[Claimed]:
        return claims.claim(self.sessions, study_id, self.owner, self.limits.max_batch, self.limits.lease, self.clock)

    def _analyse(self, claimed: Sequence[Claimed], engine: Engine) -> None:
        """Answer every claimed instance; what is not answered comes back by its lease."""
        token = claimed[0].token
        with beating(lambda: self._renew(token), self.limits) as heartbeat:
            paths = [self.store.path(one.path) for one in claimed]
            verdicts = analyse_files(paths, engine, with_attention=bool(self.report.pictures), step=heartbeat.step)
            for one, verdict in zip(claimed, verdicts, strict=True):
                heartbeat.step()
                is_kept = claims.finish(self.sessions, one, engine.digest, _outcome(verdict), self.clock)
                log.info(
                    "loop_analysed" if isinstance(verdict, AnalysedLoop) else "instance_not_analysed",
                    instance=one.sop_instance_uid,
                    worker=self.owner,
                    attempt=one.attempt,
                    kept=is_kept,
                    reason=verdict.code if isinstance(verdict, RefusedLoop) else None,
                )

    def _try_report(self, study_id: int, engine: Engine) -> bool:
        """Return whether this worker had the right to end the study, and did: with a report, or with a reason."""
        job = reports.begin_report(self.sessions, study_id, self.owner, self.limits.lease, self.clock, engine.digest)
        if job is None:
            return False
        self._report(job, engine)
        return True

    def _report(self, job: ReportJob, engine: Engine) -> None:
        section = self.report
        if job.attempt >= MAX_ATTEMPTS and section.pictures:
            # What ended the attempts before this one may have been a picture; the report matters more.
            section = section.without_pictures
            log.warning("report_without_pictures", study_uid=job.study_instance_uid, attempt=job.attempt)
        with beating(lambda: self._renew(job.token), self.limits) as heartbeat:
            try:
                self._write(job, engine, section, heartbeat.step)
            except OutOfSpace as error:
                if not section.pictures:
                    raise
                log.warning("report_without_pictures", study_uid=job.study_instance_uid, reason=str(error))
                self._write(job, engine, section.without_pictures, heartbeat.step)

    def _write(self, job: ReportJob, engine: Engine, section: ReportSection, step: Callable[[], None]) -> None:
        """Write the report and record it, or the reason why there is none.

        Raises:
            OutOfSpace, StoreError: nothing was recorded.
        """
        try:
            composed = compose(_material(job, self.store), engine, self.clock().astimezone(), section, step)
        except ReportError as error:
            reports.fail_report(self.sessions, job, str(error), self.clock)
            log.error("report_impossible", study_uid=job.study_instance_uid, reason=str(error))
            return
        if not self._renew(job.token):
            # Whoever took the report over writes a file of the same name: the loser must not touch it.
            log.warning("report_lease_lost", study=job.study_id)
            return
        written = composed.keep(self.store, UID(job.study_instance_uid))
        is_ours = reports.finish_report(self.sessions, job, written, composed.ledger, self.destinations, self.clock)
        log.info("report_written", report=composed.document.sop_instance_uid, revision=job.revision, kept=is_ours)

    def _renew(self, token: str) -> int:
        """Prolong what is held under the token; return how much that still is."""
        return claims.renew(self.sessions, token, self.limits.lease, self.clock)


def open_analyst(settings: Settings) -> tuple[Analyst, Callable[[], None]]:
    """Return the analyst of this process, and what closes it.

    Raises:
        NoEnsemble: the ensemble of the configuration cannot be used.
    """
    load = partial(load_engine, device=settings.worker.device, precision=settings.worker.precision)
    current_engine = CurrentEngine(ensemble_path(settings.ensemble), load)
    sessions = open_ledger(settings.database_url)
    bell = Bell(settings.broker.url.get_secret_value())
    analyst = Analyst(
        current_engine=current_engine,
        sessions=sessions,
        store=InstanceStore(settings.node.data_dir, min_free_bytes=settings.node.min_free_bytes),
        destinations=tuple(peer.name for peer in settings.peers if peer.receives_reports),
        report=settings.report,
        limits=limits(settings.worker),
        ring=bell.ring,
        owner=f"{socket.gethostname()}:{os.getpid()}",
    )

    def close() -> None:
        bell.close()
        close_ledger(sessions)

    return analyst, close


def _outcome(verdict: Verdict) -> Analysed | NotAnalysed:
    if isinstance(verdict, AnalysedLoop):
        return Analysed(outputs=verdict.to_json())
    return NotAnalysed(code=verdict.code, reason=verdict.reason)


def _material(job: ReportJob, store: InstanceStore) -> Material:
    return Material(
        study_instance_uid=job.study_instance_uid,
        revision=job.revision,
        predecessor=job.predecessor,
        subjects=tuple(_subject(one, store) for one in job.instances),
    )


def _subject(one: JobInstance, store: InstanceStore) -> Subject:
    verdict: Verdict
    if one.outputs is not None:
        verdict = AnalysedLoop.from_json(one.outputs)
    else:
        verdict = RefusedLoop(code=one.reason_code or "failed", reason=one.reason or "the analysis failed")
    return Subject(
        sop_instance_uid=one.sop_instance_uid,
        sop_class_uid=one.sop_class_uid,
        series_instance_uid=one.series_instance_uid,
        path=store.path(one.path),
        verdict=verdict,
        was_given_up=one.state is InstanceState.FAILED,
    )
