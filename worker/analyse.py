"""A study is drained: its loops are claimed, looked at, and, when it is complete, its report is written."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from dicom_node.clock import Clock, utc_now
from dicom_node.dispatch import Bell
from dicom_node.errors import ObjectError, ObjectsUnavailable, ReportError, StoreError
from dicom_node.fetched import worker_store
from dicom_node.identity import UID
from dicom_node.ledger import claims, drafts, reports
from dicom_node.ledger.claims import MAX_ATTEMPTS, Analysed, Claimed, NotAnalysed
from dicom_node.ledger.engine import AWAY, Sessions, close_ledger, open_ledger
from dicom_node.ledger.reports import ReportJob
from dicom_node.objects import open_objects
from dicom_node.settings import Report as ReportSection
from dicom_node.settings import Settings
from dicom_node.store import InstanceStore
from model.clip.loop import Seen
from worker.at_hand import files_of, material_of
from worker.compose import Composed, compose
from worker.engine import CurrentEngine, Engine, load_engine
from worker.leases import beating
from worker.loops import AnalysedLoop, RefusedLoop, Verdict, analyse_files
from worker.metrics import WorkerMetrics
from worker.preview import keep_preview
from worker.settings import Limits, ensemble_path, limits

log = structlog.get_logger(__name__)

Ring = Callable[[int], None]
Answer = TypeVar("Answer")

_PAUSE = timedelta(seconds=1)


class _Interrupted(Exception):
    """Something better than a draft is to be done."""


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
    draft_after: timedelta
    """A report is drafted when no instance came for so long."""
    ring: Ring
    owner: str
    """Who this is, for the eyes of a person in the ledger."""
    clock: Clock = utc_now
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)

    def drain(self, study_id: int) -> None:
        """Analyse what waits in the study; after the last loop of a complete study, write its report.

        May run twice, late, or beside another worker on the same study: loops are claimed, and one claim wins.
        """
        deadline = time.monotonic() + self.limits.budget.total_seconds()
        while True:
            engine = self.current_engine()  # before the claim: loading another one may take longer than a lease
            self.metrics.holds(engine)
            claimed = self._claim(study_id)
            if not claimed:
                if self._try_report(study_id, engine):
                    return
                claimed = self._claim(study_id)  # loops that this ensemble had not seen wait again
                if not claimed:
                    # Another worker holds the rest, who is last ends the study; or it may not be complete yet.
                    self._draft(study_id, engine)
                    return
            if not self._analyse(claimed, engine):
                return  # the node rings again
            if time.monotonic() > deadline:
                self.ring(study_id)  # other studies wait too
                return

    def _claim(self, study_id: int) -> list[Claimed]:
        return claims.claim(
            self.sessions,
            study_id,
            self.owner,
            self.limits.max_batch,
            self.limits.lease,
            self.clock,
            only_shared=self.store.is_shared,
        )

    def _analyse(self, claimed: Sequence[Claimed], engine: Engine) -> bool:
        """Answer every claimed instance; what is not answered comes back by its lease. False: none can be had now."""
        token = claimed[0].token
        with beating(lambda: self._renew(token), self.limits) as heartbeat, self.store.borrowing() as borrow:
            try:
                here = files_of(claimed, borrow, self.sessions, self.clock, heartbeat.step)
            except StoreError as error:
                # No fault of the loops: no attempt is counted.
                if not isinstance(error, ObjectsUnavailable):  # which says so itself, once
                    log.error("loops_not_fetched", reason=str(error))
                self._insist(lambda: claims.release(self.sessions, token, self.clock), heartbeat.step)
                return False
            rows = {path: one.path for one, path in here}

            def show(path: Path, seen: Seen) -> None:
                keep_preview(self.store, rows[path], seen)

            verdicts = analyse_files(
                [path for _, path in here],
                engine,
                with_attention=bool(self.report.pictures),
                step=heartbeat.step,
                timed=self.metrics.step,
                show=show,
            )
            for (one, _), verdict in zip(here, verdicts, strict=True):
                heartbeat.step()
                answer = partial(claims.finish, self.sessions, one, engine.digest, _outcome(verdict), self.clock)
                is_kept = self._insist(answer, heartbeat.step)
                if is_kept:
                    self.metrics.answered(verdict)
                log.info(
                    "loop_analysed" if isinstance(verdict, AnalysedLoop) else "instance_not_analysed",
                    instance=one.sop_instance_uid,
                    worker=self.owner,
                    attempt=one.attempt,
                    kept=is_kept,
                    reason=verdict.code if isinstance(verdict, RefusedLoop) else None,
                )
        return True

    def _try_report(self, study_id: int, engine: Engine) -> bool:
        """Return whether this worker had the right to end the study, and did: with a report, or with a reason."""
        job = reports.begin_report(
            self.sessions, study_id, self.owner, self.limits.lease, self.clock, engine.digest, self._made_with
        )
        if job is None:
            return False
        if not self._hand_in(job):
            self._report(job, engine)
        return True

    @property
    def _made_with(self) -> str:
        """Return what a report depends on beside the ledger."""
        return self.report.model_dump_json()

    def _draft(self, study_id: int, engine: Engine) -> None:
        """Make the report of a study that is quiet but not complete yet, unless there is something better to do."""
        job = drafts.begin_draft(
            self.sessions, study_id, self.owner, self.draft_after, self.clock, engine.digest, self._made_with
        )
        if job is None:
            return
        with beating(lambda: None, self.limits) as heartbeat:

            def step() -> None:
                heartbeat.step()
                if drafts.something_waits(self.sessions, study_id):
                    raise _Interrupted

            try:
                step()
                composed = self._compose(job, engine, self.report, step)
                step()
                with composed.staged(self.store, UID(job.study_instance_uid)) as (written, name_files):
                    is_kept = drafts.record_draft(self.sessions, job, written, composed.ledger, name_files)
            except (_Interrupted, StoreError) as error:
                drafts.drop_draft(self.sessions, job)
                log.info("report_not_drafted", study_uid=job.study_instance_uid, reason=type(error).__name__)
            except ReportError:
                pass  # said when the study is complete: what is missing may still come
            else:
                log.info("report_drafted", study_uid=job.study_instance_uid, revision=job.revision, kept=is_kept)

    def _hand_in(self, job: ReportJob) -> bool:
        """Return whether the report had been drafted, here, and is recorded now, or is another worker's."""
        draft = job.draft
        if draft is None:
            return False
        paths = [draft.report.path, *(one.path for one in draft.report.pictures)]
        with beating(lambda: self._renew(job.token), self.limits) as heartbeat:
            for path in paths:
                heartbeat.step()
                try:
                    if not self.store.share(path):
                        return False
                except StoreError as error:
                    log.info("report_not_handed_in", report=draft.report.sop_instance_uid, reason=str(error))
                    return False
        names = self.destinations
        record = partial(reports.finish_report, self.sessions, job, draft.report, draft.findings, names, self.clock)
        is_ours = self._insist(record, lambda: None)
        if is_ours:
            self.metrics.reported("handed_in")
        log.info("report_handed_in", report=draft.report.sop_instance_uid, revision=job.revision, kept=is_ours)
        return True

    def _compose(self, job: ReportJob, engine: Engine, section: ReportSection, step: Callable[[], None]) -> Composed:
        with self.store.borrowing() as borrow:
            material = material_of(job, borrow, self.sessions, step)
            return compose(material, engine, self.clock().astimezone(), section, step)

    def _report(self, job: ReportJob, engine: Engine) -> None:
        section = self.report
        if job.attempt >= MAX_ATTEMPTS and section.pictures:
            # What ended the attempts before this one may have been a picture; the report matters more.
            section = section.without_pictures
            log.warning("report_without_pictures", study_uid=job.study_instance_uid, attempt=job.attempt)
        with beating(lambda: self._renew(job.token), self.limits) as heartbeat:
            if section.pictures:
                try:
                    self._write(job, engine, section, heartbeat.step)
                except ObjectError as error:
                    self._put_off(job, error, heartbeat.step)  # without pictures it would not be taken either
                    return
                except StoreError as error:
                    log.warning("report_without_pictures", study_uid=job.study_instance_uid, reason=str(error))
                else:
                    return
            self._write_or_put_off(job, engine, section.without_pictures, heartbeat.step)

    def _write_or_put_off(
        self, job: ReportJob, engine: Engine, section: ReportSection, step: Callable[[], None]
    ) -> None:
        try:
            self._write(job, engine, section, step)
        except StoreError as error:
            self._put_off(job, error, step)

    def _put_off(self, job: ReportJob, error: StoreError, step: Callable[[], None]) -> None:
        # No fault of the study: it waits for the disk, as long as that takes, and no attempt is counted.
        self.metrics.reported("put_off")
        log.error("report_not_kept", study_uid=job.study_instance_uid, reason=str(error))
        why, wait = str(error), self.limits.put_off
        self._insist(lambda: claims.release(self.sessions, job.token, self.clock, why=why, wait=wait), step)

    def _write(self, job: ReportJob, engine: Engine, section: ReportSection, step: Callable[[], None]) -> None:
        """Write the report and record it, or the reason why there is none.

        Raises:
            StoreError: nothing was recorded.
        """
        try:
            composed = self._compose(job, engine, section, step)
        except ReportError as error:
            self._insist(partial(reports.fail_report, self.sessions, job, str(error), self.clock), step)
            self.metrics.reported("impossible")
            log.error("report_impossible", study_uid=job.study_instance_uid, reason=str(error))
            return
        if not self._insist(partial(self._renew, job.token), step):
            # Whoever took the report over writes a file of the same name: the loser must not touch it.
            log.warning("report_lease_lost", study=job.study_id)
            return
        written = composed.keep(self.store, UID(job.study_instance_uid), step)
        ledger, names = composed.ledger, self.destinations
        is_ours = self._insist(
            partial(reports.finish_report, self.sessions, job, written, ledger, names, self.clock), step
        )
        if is_ours:
            self.metrics.reported("composed")
        log.info("report_written", report=composed.document.sop_instance_uid, revision=job.revision, kept=is_ours)

    def _insist(self, record: Callable[[], Answer], step: Callable[[], None]) -> Answer:
        """Record what was worked out, also in a ledger that is away for a moment; to wait for it is not to hang.

        Done twice it changes nothing: the fence ends with the first time.

        Raises:
            SQLAlchemyError: it was away for longer.
        """
        deadline = time.monotonic() + self.limits.outage.total_seconds()
        while True:
            try:
                return record()
            except AWAY as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("answer_waits_for_the_ledger", reason=type(error).__name__)
                step()
                time.sleep(_PAUSE.total_seconds())

    def _renew(self, token: str) -> int:
        """Prolong what is held under the token; return how much that still is."""
        return claims.renew(self.sessions, token, self.limits.lease, self.clock)


def open_analyst(settings: Settings, metrics: WorkerMetrics) -> tuple[Analyst, Callable[[], None]]:
    """Return the analyst of this process, which counts in `metrics`, and what closes it.

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
        store=worker_store(settings.node, settings.objects, open_objects(settings.objects)),
        destinations=tuple(peer.name for peer in settings.peers if peer.receives_reports),
        report=settings.report,
        limits=limits(settings.worker),
        draft_after=settings.study.draft_after,
        ring=bell.ring,
        owner=f"{socket.gethostname()}:{os.getpid()}",
        metrics=metrics,
    )

    metrics.holds(current_engine())
    metrics.watch_gpu(current_engine().device)

    def close() -> None:
        bell.close()
        close_ledger(sessions)

    return analyst, close


def _outcome(verdict: Verdict) -> Analysed | NotAnalysed:
    if isinstance(verdict, AnalysedLoop):
        return Analysed(outputs=verdict.to_json())
    return NotAnalysed(code=verdict.code, reason=verdict.reason)
