"""The audit trail on disk: whole lines from many processes, a file a day, and nothing that stops the work."""

import errno
import fcntl
import multiprocessing
import os
import stat
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree as ET

import pytest
from structlog.testing import capture_logs

from dicom_node import audit
from dicom_node.audit import Application, StudyContent
from dicom_node.audit_trail import AuditTrail, this_application, trail_folder
from dicom_node.clock import utc_now
from dicom_node.settings import AuditSection, Node
from tests.doubles.clock import ManualClock

NODE = Application(ae_title="ECHONODE", address="host")
STARTED = audit.node_started(NODE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the trail is."""
    return tmp_path / "var" / "audit"


@pytest.fixture
def trail(folder: Path, clock: ManualClock) -> AuditTrail:
    """The trail of a node in `folder`."""
    return AuditTrail(AuditSection(), Node(data_dir=folder.parent), clock)


def lines(folder: Path) -> list[bytes]:
    """Return every line of the trail, in the order of its files."""
    return [line for path in sorted(folder.glob("audit-*.log")) for line in path.read_bytes().splitlines(keepends=True)]


def events(folder: Path) -> list[str]:
    """Return the code of each message; a line that is no message fails."""
    return [str(ET.fromstring(line).find("EventIdentification/EventID").get("csd-code")) for line in lines(folder)]


@pytest.fixture
def usual_umask() -> Iterator[None]:
    """What a shell has, whatever the machine that tests has."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
def test_a_message_is_a_line_that_only_the_node_may_read(trail: AuditTrail, folder: Path) -> None:
    """Whatever the umask: `dicom-node purge` runs under a user's."""
    trail.record(STARTED)
    trail.record(audit.node_stopped(NODE))

    (path,) = folder.iterdir()
    assert (path.name, events(folder)) == ("audit-2026-03-01.log", ["110100", "110100"])
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(folder.stat().st_mode)) == (0o600, 0o700)


def test_each_day_has_its_file_and_a_clock_that_is_set_back_goes_on_in_the_newest(
    trail: AuditTrail, folder: Path, clock: ManualClock
) -> None:
    """Whoever forwards is past the older ones."""
    trail.record(STARTED)
    clock.pass_by(86400)
    trail.record(STARTED)
    clock.pass_by(-86400)
    trail.record(STARTED)

    assert [(path.name, path.read_bytes().count(b"\n")) for path in sorted(folder.iterdir())] == [
        ("audit-2026-03-01.log", 1),
        ("audit-2026-03-02.log", 2),
    ]


def _write_many(folder: Path, number: int, gate: Barrier) -> None:
    trail = AuditTrail(AuditSection(), Node(data_dir=folder.parent), utc_now)
    content = StudyContent(study_uid=f"1.2.{number}", patient_id="x" * 5000)
    write = os.write
    gate.wait()  # some have started long before the others
    with mock.patch("os.write", side_effect=lambda fd, data: write(fd, data[:500])):
        for _ in range(50):
            trail.record(audit.study_deleted(NODE, content))


def test_messages_of_many_processes_are_whole(folder: Path) -> None:
    """Acceptors, clock and commands write at once, on a disk that takes a message piece by piece."""
    spawn = multiprocessing.get_context("spawn")
    gate = spawn.Barrier(4)
    writers = [spawn.Process(target=_write_many, args=(folder, number, gate)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    assert events(folder) == ["110105"] * 200


def test_who_writes_waits_for_who_is_writing(folder: Path) -> None:
    """Else one could cut off what another has just written, or go on in a file that is over."""
    is_writing, may_go_on = threading.Event(), threading.Event()

    def slow_clock() -> datetime:
        is_writing.set()
        may_go_on.wait()
        return utc_now()

    node = Node(data_dir=folder.parent)
    slow = threading.Thread(target=AuditTrail(AuditSection(), node, slow_clock).record, args=(STARTED,))
    quick = threading.Thread(target=AuditTrail(AuditSection(), node, utc_now).record, args=(STARTED,))
    slow.start()
    is_writing.wait()
    quick.start()
    quick.join(0.5)
    was_waiting = quick.is_alive()
    may_go_on.set()
    slow.join()
    quick.join()

    assert was_waiting
    assert events(folder) == ["110100", "110100"]


def test_nobody_waits_for_a_process_that_was_stopped_while_it_wrote(trail: AuditTrail, folder: Path) -> None:
    folder.mkdir(parents=True)
    holder = os.open(folder, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)

    with capture_logs() as logs:
        trail.record(STARTED)
    os.close(holder)
    trail.record(STARTED)

    assert [line["event"] for line in logs] == ["audit_not_written"]
    assert events(folder) == ["110100"]


def test_a_full_disk_loses_the_message_with_an_error_line_and_leaves_no_half_of_it(
    trail: AuditTrail, folder: Path
) -> None:
    """What the message is about goes on: `record` raises nothing."""
    trail.record(STARTED)
    write = os.write
    with (
        mock.patch("os.write", side_effect=lambda fd, data: _half_then_full(write, fd, data)),
        capture_logs() as logs,
    ):
        trail.record(STARTED)
    trail.record(STARTED)

    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("audit_not_written", "error")]
    assert events(folder) == ["110100", "110100"]


def _half_then_full(write: object, descriptor: int, data: memoryview) -> int:
    if len(data) < 300:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(descriptor, data[: len(data) - 200])  # type: ignore[operator]


def test_a_folder_that_cannot_be_made_costs_its_messages_alone(folder: Path, trail: AuditTrail) -> None:
    folder.parent.parent.joinpath("var").write_text("a file")

    with capture_logs() as logs:
        trail.record(STARTED)

    assert [entry["event"] for entry in logs] == ["audit_not_written"]


def test_a_line_that_was_cut_off_spoils_no_other(trail: AuditTrail, folder: Path) -> None:
    """The machine went down in a write."""
    trail.record(STARTED)
    with (folder / "audit-2026-03-01.log").open("ab") as file:
        file.write(b"<AuditMessage><EventId")
    trail.record(STARTED)

    first, torn, last = lines(folder)
    assert torn == b"<AuditMessage><EventId\n"
    assert [ET.fromstring(line).tag for line in (first, last)] == ["AuditMessage", "AuditMessage"]


def test_the_configuration_names_folder_site_and_whether_there_are_patient_ids(
    tmp_path: Path, clock: ManualClock
) -> None:
    settings = AuditSection(folder=str(tmp_path / "elsewhere"), site="General", patient_id=False)
    content = StudyContent(study_uid="1.2", patient_id="4711")

    AuditTrail(settings, Node(data_dir=tmp_path), clock).record(audit.study_deleted(NODE, content))

    (line,) = lines(tmp_path / "elsewhere")
    assert b'AuditEnterpriseSiteID="General"' in line
    assert b"4711" not in line
    assert trail_folder(AuditSection(), Node(data_dir=tmp_path)) == tmp_path / "audit"


def test_the_node_is_called_the_same_everywhere() -> None:
    """PS3.15 A.5.2.4: one name of the machine."""
    assert this_application(Node()) == this_application(Node(host="0.0.0.0"))


def test_a_clock_far_ahead_is_no_end_of_the_trail(trail: AuditTrail, folder: Path, clock: ManualClock) -> None:
    clock.pass_by(timedelta(days=400).total_seconds())
    trail.record(STARTED)
    clock.pass_by(-timedelta(days=400).total_seconds())
    trail.record(STARTED)

    (newest,) = folder.iterdir()
    assert newest.name == "audit-2027-04-05.log"
    assert events(folder) == ["110100", "110100"]
