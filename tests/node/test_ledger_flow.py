"""The whole life of a study in the ledger: whatever the order of events, it ends delivered, every instance reported."""

import contextlib
import itertools
from datetime import timedelta

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from dicom_node.completion import tick
from dicom_node.errors import CannotReopen
from dicom_node.identity import UID
from dicom_node.ledger import outbox, studies
from dicom_node.ledger.claims import Claimed
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.outbox import DueDelivery
from dicom_node.ledger.reports import ReportJob
from dicom_node.ledger.schema import Report, Study, StudyState
from dicom_node.ledger.views import study_json
from tests.doubles.analyst import LEASE, Analyst
from tests.doubles.arrivals import Arrivals
from tests.doubles.clock import ManualClock

QUIET = timedelta(seconds=30)
NUMBERS = itertools.count()
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "arrive",
                "claim",
                "answer",
                "begin",
                "write",
                "kill",
                "haunt",
                "take",
                "deliver",
                "refuse",
                "retry",
                "reprocess",
                "resend",
                "report",
                "wait",
            ]
        ),
        st.integers(1, 35),
    ),
    min_size=8,
    max_size=40,
)


class Flow:
    """One study with its worker and its delivery, each of which may forget what it held."""

    def __init__(self, arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock) -> None:
        self.uid = UID(f"1.2.826.0.4.{next(NUMBERS)}")
        self.arrivals, self.analyst, self.sessions, self.clock = arrivals, analyst, sessions, clock
        self.first = arrivals.new_uid()
        self.study_id = arrivals.send(self.uid, sop_uid=self.first)
        self.held: list[Claimed] = []
        self.job: ReportJob | None = None
        self.ghosts: list[ReportJob] = []
        self.reported: dict[int, set[str]] = {}
        self.sending: list[DueDelivery] = []

    def arrive(self) -> None:
        self.arrivals.send(self.uid)

    def claim(self) -> None:
        self.held = self.held or self.analyst.claim(self.study_id, limit=2)

    def answer(self) -> None:
        if self.held:
            self.analyst.answer(self.held.pop())

    def begin(self) -> None:
        self.job = self.job or self.analyst.begin(self.study_id)

    def write(self) -> None:
        if self.job is not None and self.analyst.write(self.job, ["pacs"]):
            assert self.job.revision not in self.reported
            self.reported[self.job.revision] = {one.sop_instance_uid for one in self.job.instances}
        self.job = None

    def kill(self) -> None:
        self.ghosts += [self.job] if self.job is not None else []
        self.held, self.job, self.sending = [], None, []

    def haunt(self) -> None:
        """A worker that was taken for dead writes after all."""
        if self.ghosts:
            self.job, job = self.ghosts.pop(), self.job
            self.write()
            self.job = job

    def take(self) -> None:
        due = outbox.due(self.sessions, "pacs", limit=5, lease=LEASE, clock=self.clock)
        self.sending = self.sending or [item for item in due if item.study_id == self.study_id]

    def deliver(self) -> None:
        if self.sending:
            outbox.delivered(self.sessions, self.sending.pop(), self.clock)

    def refuse(self) -> None:
        if self.sending:
            outbox.dead(self.sessions, self.sending.pop(), "refused", self.clock)

    def retry(self) -> None:
        studies.retry(self.sessions, self.uid, self.clock)

    def reprocess(self) -> None:
        with contextlib.suppress(CannotReopen):
            studies.reprocess(self.sessions, self.uid, self.clock)

    def resend(self) -> None:
        self.arrivals.send(self.uid, sop_uid=self.first)

    def report(self) -> None:
        """For once nothing comes in between: chance alone hardly ever gets as far as a report."""
        self.wait(31)
        self.analyst.drain(self.study_id)
        self.begin()
        self.write()

    def wait(self, seconds: float) -> None:
        self.clock.pass_by(seconds)
        tick(self.sessions, self.clock, QUIET)

    def settle(self) -> None:
        """Let everybody do their work from now on."""
        self.kill()
        for _ in range(4):
            self.retry()
            self.report()
            self.take()
            while self.sending:
                self.deliver()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@example(steps=[("report", 1), ("arrive", 1)])
@given(steps=STEPS)
def test_every_history_ends_with_one_report_a_revision_and_all_instances_in_the_last(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock, steps: list[tuple[str, int]]
) -> None:
    flow = Flow(arrivals, analyst, sessions, clock)

    for what, seconds in steps:
        if what == "wait":
            flow.wait(seconds)
        else:
            getattr(flow, what)()
    flow.settle()

    with sessions() as session:
        study = session.scalars(select(Study).where(Study.id == flow.study_id)).one()
        rows = session.scalars(select(Report).where(Report.study_id == flow.study_id).order_by(Report.id)).all()
    shown = study_json(sessions, flow.uid)
    assert study.state == StudyState.DELIVERED
    assert [row.revision for row in rows] == sorted(flow.reported)
    assert rows[-1].revision == study.revision
    assert len(flow.reported[study.revision]) == shown["instances"]
    assert [row.supersedes for row in rows] == [None, *(row.sop_instance_uid for row in rows[:-1])]
    assert {one["state"] for one in shown["deliveries"]} <= {"delivered", "superseded"}
    assert shown["deliveries"][-1]["state"] == "delivered"
