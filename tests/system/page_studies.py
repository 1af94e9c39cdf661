"""Studies for the page to show: one that was analysed with everything, and some that stand elsewhere."""

from collections.abc import Sequence
from datetime import timedelta

from pydicom import Dataset

from dicom_node import completion
from dicom_node.clock import Clock
from dicom_node.identity import UID
from dicom_node.ledger import outbox
from dicom_node.ledger.engine import Sessions
from dicom_node.settings import Report as ReportSection
from dicom_node.store import InstanceStore
from model.ensemble import SHIPPED
from tests.doubles.analyst import Analyst as Double
from tests.doubles.arrivals import Arrivals
from tests.doubles.clock import ManualClock
from tests.doubles.incoming import arrive
from tests.node.report.carts import (
    BIPLANE,
    EDV,
    LVEF,
    METHOD_SRT,
    ML,
    PERCENT,
    SELECTION,
    USER_CHOSEN,
    cart_report,
    number,
    section,
)
from worker.analyse import Analyst
from worker.engine import load_engine
from worker.settings import Limits

LEASE = timedelta(seconds=60)
QUIET = timedelta(seconds=30)


def analyse(
    instances: Sequence[Dataset],
    sessions: Sessions,
    store: InstanceStore,
    clock: ManualClock,
    destinations: tuple[str, ...] = ("pacs", "archive"),
) -> int:
    """Let a study arrive, and a worker with the shipped networks report it with its pictures; return its id."""
    study_id = arrive(instances, sessions, store, clock=clock, calling="VIVID_E95")
    clock.pass_by(40)
    completion.tick(sessions, clock, QUIET)
    engine = load_engine(SHIPPED, device="cpu", precision="fp32")
    analyst = Analyst(
        current_engine=lambda: engine,
        sessions=sessions,
        store=store,
        destinations=destinations,
        report=ReportSection(),
        limits=Limits(),
        draft_after=QUIET / 2,
        ring=lambda _study_id: None,
        owner="gpu-1:4711",
        clock=clock,
    )
    analyst.drain(study_id)
    return study_id


def deliver(sessions: Sessions, peer: str, clock: Clock, error: str = "") -> None:
    """Let everything that waits for a peer reach it; with an error, nothing ever."""
    for item in outbox.due(sessions, peer, limit=100, lease=LEASE, clock=clock):
        if error:
            outbox.dead(sessions, item, error, clock)
        else:
            outbox.delivered(sessions, item, clock)


def with_cart(instances: Sequence[Dataset]) -> list[Dataset]:
    """Return the instances and a report that the cart made of them."""
    first = instances[0]
    report = cart_report(
        section(
            number(LVEF, "54", PERCENT, (METHOD_SRT, BIPLANE), (SELECTION, USER_CHOSEN)),
            number(EDV, "121", ML, (METHOD_SRT, BIPLANE)),
        ),
        StudyInstanceUID=first.StudyInstanceUID,
        PatientID=first.PatientID,
        PatientName=first.PatientName,
    )
    return [*instances, report]


def some_others(sessions: Sessions, store: InstanceStore, clock: ManualClock) -> None:
    """Add studies in several states, with results that somebody made up."""
    arrivals, double = Arrivals(sessions, store, clock), Double(sessions, clock)
    for study, (lvef, edv, esv, stenosis) in enumerate(_NUMBERS, start=1):
        uid = UID(f"1.2.826.0.1.3680043.10.543.2026.{study}")
        for _ in range(3 + study % 4):
            study_id = arrivals.send(uid)
        clock.pass_by(40)
        completion.tick(sessions, clock, QUIET)
        double.drain(study_id)
        job = double.begin(study_id)
        assert job is not None
        results = [
            {"task": task, "value": value, "unit": unit, "sd": sd, "loops": [], "members": 3, "probabilities": None}
            for task, value, unit, sd in (
                ("lvef", lvef, "%", 2.2), ("lvedv", edv, "mL", 8.0), ("lvesv", esv, "mL", 5.0),
                ("aortic_stenosis", stenosis, "", None),
            )
        ]  # fmt: skip
        double.write(job, ["archive"], results)
        deliver(sessions, "archive", clock)
        clock.pass_by(700)
    failed = arrivals.send(UID("1.2.826.0.1.3680043.10.543.2026.98"))
    clock.pass_by(40)
    completion.tick(sessions, clock, QUIET)
    with sessions.begin() as session:
        session.connection().exec_driver_sql(
            "UPDATE study SET state='failed', error='the instances are of more than one patient: no report' "
            f"WHERE id={failed}"
        )
    arrivals.send(UID("1.2.826.0.1.3680043.10.543.2026.99"))


_NUMBERS = (
    (61.4, 98.0, 38.0, "no"),
    (34.8, 188.0, 122.0, "no"),
    (57.2, 110.0, 47.0, "moderate"),
    (48.9, 142.0, 72.0, "mildtomod"),
    (63.0, 87.0, 32.0, "no"),
)
