"""The whole life of one study, played by the node's own parts, with everything that may befall it.

It ends in any of its steps when its process does; who comes after it plays on, and must find nothing lost or doubled.
"""

import json
import os
import random
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import select

from dicom_node.completion import tick
from dicom_node.delivery import Deliverer
from dicom_node.errors import DeliveryError, Refused, Transient
from dicom_node.identity import UID, result_uid
from dicom_node.intake import Intake
from dicom_node.ledger import studies
from dicom_node.ledger.claims import NotAnalysed
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.reports import ReportJob, WrittenPicture
from dicom_node.ledger.schema import Delivery, Instance, Report, Study, StudyState
from dicom_node.retention import purge
from dicom_node.senders import Send
from dicom_node.settings import Peer, Retention
from dicom_node.store import InstanceStore, dataset_digest
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import instance
from tests.doubles.clock import ManualClock

QUIET = timedelta(seconds=30)
POLICY = Retention(days=7)
_PEER = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=104, receives_reports=True)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One instance as a scanner sends it."""

    sop_uid: UID
    dataset: bytes

    @property
    def digest(self) -> str:
        """Return the sha256 of its bytes."""
        return dataset_digest(self.dataset)


@dataclass(kw_only=True)
class Archive:
    """A PACS in a file: what it has got outlives whoever sent it."""

    path: Path
    script: list[DeliveryError] = field(default_factory=list)
    """How it fails before it takes a report, one error each."""

    @contextmanager
    def open(self) -> Iterator[Send]:
        """Give a way to it."""
        yield self._store

    def _store(self, path: Path) -> None:
        if self.script and path.parent.name == "reports":
            raise self.script.pop(0)
        line = json.dumps([path.stem, path.read_bytes().hex()]) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def held(self) -> dict[str, set[bytes]]:
        """Return every content that came under each SOP Instance UID."""
        found: dict[str, set[bytes]] = defaultdict(set)
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                sop_uid, content = json.loads(line)
                found[sop_uid].add(bytes.fromhex(content))
        return found


class Life:
    """One study of a ledger; `number` tells it from the others."""

    def __init__(
        self, number: int, sessions: Sessions, store: InstanceStore, archive: Archive, clock: ManualClock
    ) -> None:
        self.study_uid = UID(f"1.2.826.0.7.{number}")
        self.loop, self.deadly, self.still = (
            Sent(sop_uid=UID(f"{self.study_uid}.{name}"), dataset=b"pixels of %d, %d" % (number, name))
            for name in (1, 2, 3)
        )
        self.version = Sent(sop_uid=self.loop.sop_uid, dataset=b"other pixels of %d" % number)
        self.sessions, self.store, self.archive, self.clock = sessions, store, archive, clock
        self.intake = Intake(sessions, store, clock, lambda _study_id: None)
        self.analyst = Analyst(sessions, clock)
        self.deliverer = Deliverer(
            peer=_PEER, sender=archive, sessions=sessions, store=store, clock=clock, jitter=random.Random(7)
        )

    @property
    def everything(self) -> Sequence[Sent]:
        """Return what the scanner has to send, in its order."""
        return self.loop, self.deadly, self.still, self.version

    def play(self, had_success: Callable[[Sent], None], at: Callable[[datetime], None]) -> None:
        """Live from the first instance until retention, through every state; tell of each Success, and the time."""

        def send(sent: Sent) -> int:
            study_id = self.send(sent)
            had_success(sent)
            return study_id

        def wait(seconds: float) -> None:
            self.clock.pass_by(seconds)
            at(self.clock())
            tick(self.sessions, self.clock, QUIET)

        study_id = send(self.loop)
        send(self.deadly)
        send(self.still)
        for _ in range(3):
            self._analyse(study_id)
            wait(21)
        self.write_report(study_id)
        self.deliver(Transient("not now"))
        send(self.version)
        wait(31)
        self._analyse(study_id)
        self.write_report(study_id)  # takes the place of the first
        self.deliver(Refused("never"))
        wait(20)
        self.deliver(Refused("never"))
        studies.retry(self.sessions, self.study_uid, self.clock)
        self.deliver()
        wait(8 * 86400)
        purge(self.sessions, self.store, POLICY, self.clock)

    def play_on(self, unanswered: Sequence[Sent]) -> None:
        """Do what everybody would do from now on: the scanner sends again what it had no Success for."""
        for one in unanswered:
            self.send(one)
        study_id = studies.study_id_of(self.sessions, self.study_uid)
        for _ in range(10):
            self.clock.pass_by(200)
            tick(self.sessions, self.clock, QUIET)
            self.analyst.drain(study_id)
            self.write_report(study_id)
            self.deliver()
            if "study delivered" in self.states():
                return
            studies.retry(self.sessions, self.study_uid, self.clock)

    def send(self, sent: Sent) -> int:
        """Receive one instance and return its study's id."""
        return self.intake.receive(instance(self.study_uid, sent.sop_uid, sent.dataset)).study_id

    def write_report(self, study_id: int) -> None:
        """Write the report and its picture if it is time for it; no two attempts write the same bytes."""
        job = self.analyst.begin(study_id)
        if job is None:
            return
        says = json.dumps({"attempt": uuid.uuid4().hex, "of": [one.path for one in job.instances]}).encode()
        picture_uid = _uid(job, "picture")
        path = self.store.keep_picture(self.study_uid, picture_uid, b"picture " + says)
        self.store.keep_report(_uid(job, "sr"), says)
        picture = WrittenPicture(kind="summary", sop_instance_uid=picture_uid, sop_class_uid="1.2", path=path)
        self.analyst.write(job, ["pacs"], pictures=[picture])

    def deliver(self, *script: DeliveryError) -> None:
        """Deliver what is due to a PACS that fails as told."""
        self.archive.script[:] = script
        self.deliverer.deliver_due()

    def _analyse(self, study_id: int) -> None:
        """Answer for all but the loop that costs its worker."""
        for claimed in self.analyst.claim(study_id):
            if claimed.sop_instance_uid == self.still.sop_uid:
                self.analyst.answer(claimed, NotAnalysed(code="still", reason="a still image"))
            elif claimed.sop_instance_uid != self.deadly.sop_uid:
                self.analyst.answer(claimed)

    # --- what must be true ---

    def states(self) -> set[str]:
        """Return every state that something of this study is in."""
        statements = {
            "study": select(Study.state),
            "instance": select(Instance.state).join(Study),
            "delivery": select(Delivery.state).join(Report).join(Study),
        }
        own = Study.study_instance_uid == self.study_uid
        with reading(self.sessions) as session:
            return {
                f"{name} {state}"
                for name, statement in statements.items()
                for state in session.scalars(statement.where(own))
            }

    def check_kept(self, answered: Sequence[Sent]) -> None:
        """Assert that what had Success is there, and that whatever the ledger names is whole on the disk."""
        with reading(self.sessions) as session:
            study = session.scalar(select(Study).where(Study.study_instance_uid == self.study_uid))
            if study is None:
                assert not answered, "a study that had Success is gone"
                return
            rows = session.scalars(select(Instance).where(Instance.study_id == study.id)).all()
            reports = session.scalars(select(Report).where(Report.study_id == study.id)).all()
        known = {(one.sop_instance_uid, one.sha256) for one in rows}
        assert {(one.sop_uid, one.digest) for one in answered} <= known, "an instance that had Success is gone"
        assert all(self.store.exists(one.path) for one in reports), "a report that the ledger names is gone"
        if not self._may_be_purged(study):
            for row in rows:
                dataset = self.store.path(row.path).read_bytes().partition(b"DICM")[2]
                assert dataset_digest(dataset) == row.sha256, f"{row.path} is not what was sent"

    def _may_be_purged(self, study: Study) -> bool:
        age = self.clock() - study.delivered_at if study.delivered_at else timedelta(0)
        return study.state == StudyState.DELIVERED and age > timedelta(days=POLICY.days)

    def check_done(self) -> None:
        """Assert that the PACS has the last report, of all instances, and nothing that the ledger does not know."""
        with reading(self.sessions) as session:
            study = session.scalars(select(Study).where(Study.study_instance_uid == self.study_uid)).one()
            rows = session.scalars(select(Instance).where(Instance.study_id == study.id).order_by(Instance.id)).all()
            reports = session.scalars(select(Report).where(Report.study_id == study.id).order_by(Report.id)).all()
        assert study.state == StudyState.DELIVERED, f"the study ends {study.state}: {study.error}"
        assert {(one.sop_instance_uid, one.sha256) for one in rows} == {(s.sop_uid, s.digest) for s in self.everything}
        revisions = [one.revision for one in reports]
        assert len(set(revisions)) == len(revisions), "two reports of one revision"
        assert revisions[-1] == study.revision
        held = self.archive.held()
        for report in reports:
            contents = held.get(report.sop_instance_uid, set())
            assert len(contents) <= 1, "two reports under one UID"
            assert contents <= {self.store.path(report.path).read_bytes()}, "the PACS has another report than the node"
        (newest,) = held[reports[-1].sop_instance_uid]
        assert json.loads(newest)["of"] == [one.path for one in rows if one.is_current], "an instance is not reported"
        folder = self.store.path("instances") / self.study_uid
        there = {str(path.relative_to(self.store.path(""))) for path in folder.glob("*")}
        named = {one.path for one in rows}
        assert there <= named, "a file that no row names"
        assert there == named or self._may_be_purged(study), "a file is gone"
        assert not [*self.store.path("incoming").iterdir()]

    def check_purged(self) -> None:
        """Assert that the images are gone and the ledger knows it."""
        with reading(self.sessions) as session:
            study = session.scalars(select(Study).where(Study.study_instance_uid == self.study_uid)).one()
        assert (study.state, study.purged_at is None) == (StudyState.DELIVERED, False)
        assert not (self.store.path("instances") / self.study_uid).exists()
        assert not (self.store.path("pictures") / self.study_uid).exists()


def _uid(job: ReportJob, kind: str) -> UID:
    return result_uid(UID(job.study_instance_uid), job.revision, job.ensemble_digest, kind)
