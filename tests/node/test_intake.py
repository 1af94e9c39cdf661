"""An instance is safe and counted when the intake returns, or nothing of it is left."""

import contextlib
import errno
import itertools
import multiprocessing
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import func, select, text

from dicom_node.clock import utc_now
from dicom_node.errors import LedgerUnavailable, StoreError, UidConflict
from dicom_node.identity import UID
from dicom_node.intake import Intake, IntakeKind
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.reports import WrittenPicture
from dicom_node.ledger.schema import History, Instance, Report, Study, StudyState
from dicom_node.ledger.views import study_json
from dicom_node.report.sr_class import SR_CLASSES, uid_in_class
from dicom_node.store import InstanceStore, Kept, dataset_digest
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals, instance
from tests.doubles.clock import ManualClock

OTHER_STUDY = UID("1.2.826.0.1.5")
SOP = UID("1.2.826.0.1.9.1000")


def count(sessions: Sessions, table: type[Study] | type[Instance] | type[History]) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def images(store: InstanceStore) -> list[Path]:
    return [path for path in store.path("instances").rglob("*") if path.is_file()]


def set_state(sessions: Sessions, state: StudyState) -> None:
    with sessions.begin() as session:
        session.execute(text("UPDATE study SET state = :state"), {"state": state.value})


def test_an_instance_is_on_disk_in_the_ledger_and_rung_for(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore
) -> None:
    study_id = arrivals.send(sop_uid=SOP, dataset=b"pixels")

    with sessions() as session:
        row = session.scalars(select(Instance)).one()
    assert store.path(row.path).read_bytes().endswith(b"DICMpixels")
    assert (row.sop_instance_uid, row.num_bytes, row.is_loop, row.is_current) == (SOP, 6, True, True)
    assert arrivals.rung == [study_id]


@pytest.mark.parametrize(("num_frames", "is_loop"), [(None, False), (1, False), (2, True)])
def test_more_than_one_frame_makes_a_loop(
    arrivals: Arrivals, sessions: Sessions, num_frames: int | None, is_loop: bool
) -> None:
    arrivals.send(num_frames=num_frames)

    assert study_json(sessions, STUDY)["loops"] == int(is_loop)


def test_identical_bytes_again_change_nothing(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    arrivals.send(sop_uid=SOP, dataset=b"pixels")
    before = study_json(sessions, STUDY)
    clock.pass_by(10)

    outcome = arrivals.intake.receive(instance(STUDY, SOP, b"pixels"))

    assert outcome.kind is IntakeKind.IDENTICAL
    assert study_json(sessions, STUDY) == before
    assert len(images(store)) == 1
    assert len(arrivals.rung) == 1


def test_an_identical_instance_whose_file_is_gone_is_kept_again(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore
) -> None:
    arrivals.send(sop_uid=SOP, dataset=b"pixels")
    store.remove_study(STUDY)

    outcome = arrivals.intake.receive(instance(STUDY, SOP, b"pixels"))

    assert outcome.kind is IntakeKind.IDENTICAL
    assert len(images(store)) == 1


def test_other_bytes_of_the_same_study_become_the_current_version(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore
) -> None:
    arrivals.send(sop_uid=SOP, dataset=b"old")

    outcome = arrivals.intake.receive(instance(STUDY, SOP, b"newer"))

    with sessions() as session:
        versions = session.execute(select(Instance.num_bytes, Instance.is_current).order_by(Instance.id)).all()
    assert outcome.kind is IntakeKind.VERSION
    assert [tuple(version) for version in versions] == [(3, False), (5, True)]
    assert len(images(store)) == 2
    assert study_json(sessions, STUDY)["instances"] == 1


def test_an_older_version_sent_again_stays_older(arrivals: Arrivals, sessions: Sessions) -> None:
    arrivals.send(sop_uid=SOP, dataset=b"old")
    arrivals.send(sop_uid=SOP, dataset=b"newer")

    outcome = arrivals.intake.receive(instance(STUDY, SOP, b"old"))

    with sessions() as session:
        current = session.scalars(select(Instance.num_bytes).where(Instance.is_current)).all()
    assert (outcome.kind, current) == (IntakeKind.IDENTICAL, [5])


def test_a_uid_of_another_study_goes_to_quarantine_and_into_the_history(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore
) -> None:
    arrivals.send(sop_uid=SOP, dataset=b"one")

    with pytest.raises(UidConflict):
        arrivals.intake.receive(instance(OTHER_STUDY, SOP, b"two"))

    assert [path.read_bytes()[-3:] for path in store.path("quarantine").iterdir()] == [b"two"]
    assert "uid_conflict" in {line["event"] for line in study_json(sessions, STUDY)["history"]}
    assert count(sessions, Study) == 1
    assert len(images(store)) == 1


@pytest.mark.parametrize("state", [StudyState.RECEIVING, StudyState.ANALYSING])
def test_a_late_instance_before_the_report_restarts_the_wait(
    arrivals: Arrivals, sessions: Sessions, clock: ManualClock, state: StudyState
) -> None:
    arrivals.send()
    set_state(sessions, state)
    clock.pass_by(29)

    arrivals.send()

    study = study_json(sessions, STUDY)
    assert (study["state"], study["revision"]) == ("receiving", 1)
    assert study["last_received_at"] == "2026-03-01T12:00:29.000Z"


@pytest.mark.parametrize(
    "state", [StudyState.REPORTING, StudyState.DELIVERING, StudyState.DELIVERED, StudyState.FAILED]
)
def test_a_late_instance_after_the_report_began_opens_a_revision(
    arrivals: Arrivals, sessions: Sessions, state: StudyState
) -> None:
    arrivals.send()
    set_state(sessions, state)

    arrivals.send()

    study = study_json(sessions, STUDY)
    assert (study["state"], study["revision"], study["error"]) == ("receiving", 2, None)
    assert study["history"][-1]["detail"] == "late instance: revision 2"


def test_our_own_report_is_taken_and_not_opened(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, store: InstanceStore
) -> None:
    study_id = arrivals.send()
    set_state(sessions, StudyState.ANALYSING)
    analyst.report(study_id)
    with sessions() as session:
        own = UID(session.scalars(select(Report.sop_instance_uid)).one())

    outcome = arrivals.intake.receive(instance(STUDY, own, b"a report"))

    assert (outcome.kind, outcome.study_id) == (IntakeKind.OWN_REPORT, study_id)
    assert study_json(sessions, STUDY)["state"] == "delivered"
    assert len(images(store)) == 1


@pytest.mark.parametrize("came_back", ["picture", *SR_CLASSES])
def test_what_went_out_with_our_report_or_as_another_class_of_it_is_ours_too(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, store: InstanceStore, came_back: str
) -> None:
    study_id = arrivals.send()
    set_state(sessions, StudyState.ANALYSING)
    picture = WrittenPicture(kind="summary", sop_instance_uid="1.2.5", sop_class_uid="1.2", path="pictures/1.dcm")
    analyst.report(study_id, pictures=[picture])
    stored = UID(study_json(sessions, STUDY)["reports"][0]["sop_instance_uid"])
    if came_back == "picture":
        own = instance(STUDY, UID("1.2.5"), b"a picture")
    else:
        sop_class = UID(SR_CLASSES[came_back])  # type: ignore[index]
        own = replace(instance(STUDY, uid_in_class(stored, sop_class), b"a report"), sop_class_uid=sop_class)

    outcome = arrivals.intake.receive(own)

    assert (outcome.kind, outcome.study_id) == (IntakeKind.OWN_REPORT, study_id)
    assert study_json(sessions, STUDY)["state"] == "delivered"
    assert len(images(store)) == 1


def test_the_report_of_a_cart_is_an_instance_like_any_other(arrivals: Arrivals, analyst: Analyst) -> None:
    arrivals.send()

    cart = replace(instance(STUDY, UID("1.2.77"), b"a report"), sop_class_uid=UID(SR_CLASSES["comprehensive"]))

    assert arrivals.intake.receive(cart).kind is IntakeKind.KEPT


def test_a_failing_ledger_is_named_and_leaves_no_file(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore
) -> None:
    with sessions.begin() as session:
        session.execute(text("ALTER TABLE instance RENAME TO gone"))

    with pytest.raises(LedgerUnavailable):
        arrivals.send()

    assert images(store) == []
    assert arrivals.rung == []


def test_a_commit_that_fails_after_the_rename_removes_its_file(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore
) -> None:
    with sessions.begin() as session:
        session.execute(text("ALTER TABLE history RENAME TO gone"))  # read first by the write transaction alone

    with pytest.raises(LedgerUnavailable):
        arrivals.send()

    assert images(store) == []


@pytest.mark.parametrize("which", [0, 1], ids=["the file's", "the folder's"])
def test_an_fsync_that_fails_after_the_name_was_given_leaves_no_file_and_no_row(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore, which: int
) -> None:
    arrivals.send()
    calls = itertools.count()
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if next(calls) == which:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    with mock.patch.object(os, "fsync", side_effect=fail), pytest.raises(StoreError):
        arrivals.send(sop_uid=SOP)

    assert len(images(store)) == 1
    assert count(sessions, Instance) == 1
    assert len(arrivals.rung) == 1


def test_a_file_that_fails_and_has_the_name_of_another_association_s_row_stays(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore
) -> None:
    """The same instance comes over two associations; the disk fails the one when the other has had its answer."""
    fsync = os.fsync
    others = [arrivals.intake]

    def fail(descriptor: int) -> None:
        if not others or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fsync(descriptor)
            return
        others.pop().receive(instance(STUDY, SOP, b"pixels"))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with mock.patch.object(os, "fsync", side_effect=fail), pytest.raises(StoreError):
        arrivals.send(sop_uid=SOP, dataset=b"pixels")

    assert count(sessions, Instance) == 1
    assert [path.read_bytes()[-6:] for path in images(store)] == [b"pixels"]


def test_a_name_that_another_file_took_before_the_row_is_given_to_a_safe_one(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore
) -> None:
    """Retention removed the file, and another association has just begun to keep the same instance."""
    keep = store.keep
    synced: list[int] = []

    def lose(*arguments: Any, **options: Any) -> Kept:
        kept = keep(*arguments, **options)
        if options:
            store.remove(kept.path)
            store.path(kept.path).parent.mkdir(exist_ok=True)
            store.path(kept.path).write_bytes(b"not yet safe")
        synced.append(kept.inode)
        return kept

    with mock.patch.object(store, "keep", side_effect=lose):
        arrivals.send(sop_uid=SOP, dataset=b"pixels")

    (image,) = images(store)
    assert (image.stat().st_ino, image.read_bytes()[-6:]) == (synced[-1], b"pixels")
    assert len(synced) == 2


def test_a_bell_is_rung_only_after_the_commit(sessions: Sessions, store: InstanceStore, clock: ManualClock) -> None:
    seen: list[int] = []
    intake = Intake(sessions, store, clock, lambda _study_id: seen.append(count(sessions, Instance)))

    intake.receive(instance(STUDY, SOP))

    assert seen == [1]


def at_once(number: int, work: Callable[[int], object]) -> list[object]:
    """Run `work` with 0..number-1 in as many threads that start together."""
    gate = threading.Barrier(number)

    def run(position: int) -> object:
        gate.wait(timeout=30)
        return work(position)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


def test_the_same_instance_from_many_associations_at_once_is_one_row(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore
) -> None:
    outcomes = at_once(8, lambda _position: arrivals.intake.receive(instance(STUDY, SOP, b"pixels")).kind)

    assert sorted(str(kind) for kind in outcomes) == [IntakeKind.IDENTICAL] * 7 + [IntakeKind.KEPT]
    assert (count(sessions, Study), count(sessions, Instance), len(images(store))) == (1, 1, 1)


def test_versions_of_one_instance_at_once_leave_one_current(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore
) -> None:
    at_once(8, lambda position: arrivals.intake.receive(instance(STUDY, SOP, b"%d" % position)))

    assert (count(sessions, Instance), len(images(store))) == (8, 8)
    assert study_json(sessions, STUDY)["instances"] == 1


def test_many_acceptors_fill_one_study_without_loss(
    ledger_url: str, store: InstanceStore, clock: ManualClock, sessions: Sessions
) -> None:
    ledgers = [open_ledger(ledger_url) for _ in range(3)]
    intakes = [Intake(ledger, store, clock, lambda _study_id: None) for ledger in ledgers]
    uids = [UID(f"1.2.826.0.1.8.{number}") for number in range(1, 121)]

    at_once(12, lambda position: [intakes[position % 3].receive(instance(STUDY, uid)) for uid in uids[position::12]])

    for ledger in ledgers:
        close_ledger(ledger)
    assert study_json(sessions, STUDY)["instances"] == 120
    assert len(images(store)) == 120
    assert sum(line["event"] == "receiving" for line in study_json(sessions, STUDY)["history"]) == 1


def test_one_uid_in_two_studies_at_once_is_kept_once_and_refused_once(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore
) -> None:
    def send(position: int) -> str:
        try:
            arrivals.intake.receive(instance([STUDY, OTHER_STUDY][position], SOP, b"%d" % position))
        except UidConflict:
            return "refused"
        return "kept"

    assert sorted(str(answer) for answer in at_once(2, send)) == ["kept", "refused"]
    assert (count(sessions, Study), count(sessions, Instance), len(images(store))) == (1, 1, 1)


def receive_for_ever(url: str, root: Path, said: Connection) -> None:
    """Receive instance after instance and say each that would have had Success; the body of a child process."""
    sessions = open_ledger(url)
    intake = Intake(sessions, InstanceStore(root, min_free_bytes=0), utc_now, lambda _study_id: None)
    for number in itertools.count():
        uid = UID(f"1.2.826.0.1.8.{number}")
        intake.receive(instance(STUDY, uid, b"pixels of %d" % number))
        said.send(uid)


def test_what_had_success_outlives_a_kill(sessions: Sessions, ledger_url: str, store: InstanceStore) -> None:
    spawn = multiprocessing.get_context("spawn")
    hear, say = spawn.Pipe(duplex=False)
    acceptor = spawn.Process(target=receive_for_ever, args=(ledger_url, store.path(""), say), daemon=True)
    acceptor.start()
    say.close()
    answered = [hear.recv() for _ in range(25)]
    acceptor.kill()
    acceptor.join(30)
    with contextlib.suppress(EOFError):
        while True:
            answered.append(hear.recv())
    hear.close()

    with sessions() as session:
        rows = session.execute(select(Instance.sop_instance_uid, Instance.path, Instance.sha256)).all()
    paths = {uid: store.path(path) for uid, path, _digest in rows}
    assert set(answered) <= set(paths)
    assert len(rows) <= len(answered) + 1
    for uid, _path, digest in rows:
        dataset = paths[uid].read_bytes().partition(b"DICM")[2]
        assert dataset_digest(dataset) == digest
