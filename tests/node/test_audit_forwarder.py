"""The audit trail reaches a syslog receiver: all of it, in order, whatever goes down in between."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from structlog.testing import capture_logs

from dicom_node import audit
from dicom_node.audit import Application, Outcome, Person, StudyContent
from dicom_node.audit_forwarder import Forwarder
from dicom_node.audit_trail import AuditTrail
from dicom_node.settings import AuditSection, Node
from dicom_node.syslog import Receiver, make_receiver
from tests.binaries import free_port
from tests.doubles.certificates import Authority
from tests.doubles.certificates import authority as new_authority
from tests.doubles.clock import ManualClock
from tests.doubles.syslog_server import SyslogMessage, TlsSyslog, UdpSyslog
from tests.patience import wait_until

NODE = Application(ae_title="ECHONODE", address="host")
_DEADLINE = 60.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs what the hospital trusts."""
    return new_authority(tmp_path_factory.mktemp("ca"))


class Trail:
    """A trail of numbered studies."""

    def __init__(self, data_dir: Path, clock: ManualClock) -> None:
        self.folder = data_dir / "audit"
        self._receivers: list[Receiver] = []
        self.record = AuditTrail(AuditSection(), Node(data_dir=data_dir), clock).record

    def add(self, *numbers: int) -> None:
        """Put messages into the trail."""
        for number in numbers:
            self.record(audit.study_deleted(NODE, StudyContent(study_uid=f"1.2.{number}", patient_id="")))

    def forwarder(self, syslog: str, **more: str) -> Forwarder:
        """Return what sends the trail to a receiver; it knows no more than what is on the disk."""
        receiver = make_receiver(AuditSection(syslog=syslog, **more))
        self._receivers.append(receiver)
        return Forwarder(self.folder, receiver)

    def is_settled(self) -> bool:
        """Return whether all there is counts as sent: a batch that does not yet is sent again."""
        position = self.folder / "forwarded.json"
        size = max(self.folder.glob("audit-*.log")).stat().st_size
        return position.exists() and json.loads(position.read_text())["offset"] == size

    def close(self) -> None:
        """End what a test left open."""
        for receiver in self._receivers:
            receiver.close()


@pytest.fixture
def trail(tmp_path: Path, clock: ManualClock) -> Iterator[Trail]:
    """An empty trail."""
    opened = Trail(tmp_path, clock)
    yield opened
    opened.close()


@contextmanager
def running(forwarder: Forwarder) -> Iterator[None]:
    """Let it send until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=forwarder.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def numbers(messages: list[SyslogMessage]) -> list[int]:
    """Return the studies of the messages."""
    found = [ET.fromstring(message.xml).find("ParticipantObjectIdentification") for message in messages]
    return [int(str(one.get("ParticipantObjectID")).removeprefix("1.2.")) for one in found if one is not None]


def drain(forwarder: Forwarder) -> None:
    """Send all there is."""
    while forwarder.forward():
        pass


def test_messages_go_over_tls_in_frames_with_the_header_of_the_standard(trail: Trail, authority: Authority) -> None:
    """RFC 5425, RFC 5424, PS3.15 A.6: facility 10, notice, DICOM+RFC3881."""
    trail.add(1, 2, 3)
    with (
        TlsSyslog(authority.issue("syslog")) as server,
        running(trail.forwarder(f"tls://127.0.0.1:{server.port}", ca=str(authority.certificate))),
    ):
        wait_until(lambda: len(server.messages) == 3)
        trail.add(4)
        wait_until(lambda: len(server.messages) == 4)

    assert numbers(server.messages) == [1, 2, 3, 4]
    assert {(one.priority, one.msgid) for one in server.messages} == {(85, "DICOM+RFC3881")}
    assert server.messages[0].time == "2026-03-01T12:00:00.000+00:00"


def test_messages_go_over_udp_a_datagram_each(trail: Trail) -> None:
    """RFC 5426; a failure is a warning (A.7: severity 4)."""
    server = UdpSyslog()
    trail.add(7)
    person = Person(user="nurse", address="10.0.0.9")
    trail.record(audit.user_authentication(NODE, person, Outcome.MINOR_FAILURE))

    with running(trail.forwarder(f"udp://127.0.0.1:{server.port}")):
        first, second = server.take(), server.take()
    server.close()

    assert numbers([first]) == [7]
    assert (first.priority, second.priority) == (85, 84)


def test_a_receiver_that_was_down_gets_all_messages_once_and_in_order(trail: Trail, authority: Authority) -> None:
    """And so does one that goes down once more."""
    certificate, port = authority.issue("syslog"), free_port()
    trail.add(*range(100))
    with capture_logs() as logs, running(trail.forwarder(f"tls://127.0.0.1:{port}", ca=str(authority.certificate))):
        wait_until(lambda: bool(logs))
        trail.add(*range(100, 200))
        with TlsSyslog(certificate, port) as server:
            wait_until(lambda: len(server.messages) == 200 and trail.is_settled())
        trail.add(*range(200, 220))
        with TlsSyslog(certificate, port) as again:
            wait_until(lambda: len(again.messages) >= 20)

    assert numbers(server.messages) == list(range(200))
    assert numbers(again.messages) == list(range(200, 220))


class Unreachable:
    """A receiver that is out of reach a few times."""

    def __init__(self, num_failures: int) -> None:
        self.left = num_failures
        self.taken: list[bytes] = []

    def send(self, messages: Sequence[bytes]) -> None:
        """Take a batch, or raise OSError."""
        if self.left:
            self.left -= 1
            raise ConnectionRefusedError("nobody listens")
        self.taken += messages

    def close(self) -> None:
        """Do nothing."""


def test_an_outage_is_one_warning_however_often_it_is_tried(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one line when it is over."""
    monkeypatch.setattr("dicom_node.audit_forwarder.LONGEST_WAIT", timedelta(milliseconds=10))
    trail.add(1)
    receiver = Unreachable(5)

    with capture_logs() as logs, running(Forwarder(trail.folder, receiver)):
        wait_until(lambda: bool(receiver.taken))

    assert [entry["event"] for entry in logs] == ["syslog_unreachable", "syslog_reached"]


def test_after_a_restart_of_the_node_forwarding_goes_on_where_it_was(trail: Trail, authority: Authority) -> None:
    """Where it stands is on the disk; nothing is sent again, nothing left out."""
    with TlsSyslog(authority.issue("syslog")) as server:
        url = f"tls://127.0.0.1:{server.port}"
        trail.add(1, 2)
        with running(trail.forwarder(url, ca=str(authority.certificate))):
            wait_until(lambda: len(server.messages) == 2)
        trail.add(3, 4)
        with running(trail.forwarder(url, ca=str(authority.certificate))):
            wait_until(lambda: len(server.messages) == 4)

    assert numbers(server.messages) == [1, 2, 3, 4]


def test_what_is_written_before_the_end_is_sent_before_it(trail: Trail, authority: Authority) -> None:
    """The message that the node stops is not kept for its next start."""
    with TlsSyslog(authority.issue("syslog")) as server:
        with running(trail.forwarder(f"tls://127.0.0.1:{server.port}", ca=str(authority.certificate))):
            trail.add(*range(150))

        wait_until(lambda: len(server.messages) == 150)
    assert numbers(server.messages) == list(range(150))


def test_a_connection_that_the_receiver_ended_is_opened_anew_before_anything_is_sent(
    trail: Trail, authority: Authority
) -> None:
    """Else the next message would go into a socket that nobody reads: TLS syslog acknowledges nothing."""
    with TlsSyslog(authority.issue("syslog")) as server:
        forwarder = trail.forwarder(f"tls://127.0.0.1:{server.port}", ca=str(authority.certificate))
        trail.add(1)
        drain(forwarder)
        wait_until(lambda: len(server.messages) == 1)
        server.hang_up()
        wait_until(lambda: server.num_ended == 1)
        trail.add(2)
        drain(forwarder)
        wait_until(lambda: len(server.messages) == 2)

    assert numbers(server.messages) == [1, 2]


def test_every_day_s_file_is_sent_in_order(trail: Trail, authority: Authority, clock: ManualClock) -> None:
    with TlsSyslog(authority.issue("syslog")) as server:
        for number in range(3):
            trail.add(number)
            clock.pass_by(86400)
        drain(trail.forwarder(f"tls://127.0.0.1:{server.port}", ca=str(authority.certificate)))
        wait_until(lambda: len(server.messages) == 3)

    assert numbers(server.messages) == [0, 1, 2]


def test_old_files_may_be_removed(trail: Trail, authority: Authority, clock: ManualClock) -> None:
    """Also the one that was being sent."""
    with TlsSyslog(authority.issue("syslog")) as server:
        forwarder = trail.forwarder(f"tls://127.0.0.1:{server.port}", ca=str(authority.certificate))
        trail.add(1)
        drain(forwarder)
        for path in trail.folder.glob("audit-*.log"):
            path.unlink()
        clock.pass_by(86400)
        trail.add(2)
        drain(forwarder)
        wait_until(lambda: len(server.messages) == 2)

    assert numbers(server.messages) == [1, 2]


def test_a_receiver_whose_certificate_is_not_trusted_gets_nothing(
    trail: Trail, authority: Authority, tmp_path: Path
) -> None:
    stranger = new_authority(tmp_path / "stranger")
    trail.add(1)

    with TlsSyslog(stranger.issue("syslog")) as server:
        forwarder = trail.forwarder(f"tls://127.0.0.1:{server.port}", ca=str(authority.certificate))
        with pytest.raises(OSError, match="certificate verify failed"):
            drain(forwarder)

    assert server.messages == []


def test_the_node_shows_its_certificate_to_a_receiver_that_asks(trail: Trail, authority: Authority) -> None:
    """Both ends are who they say (PS3.15 A.6 leaves it to the site; hospitals ask)."""
    shown = authority.issue("node")
    trail.add(1)
    with TlsSyslog(authority.issue("syslog"), trusted=authority.certificate) as server:
        url = f"tls://127.0.0.1:{server.port}"
        with pytest.raises(OSError):
            drain(trail.forwarder(url, ca=str(authority.certificate)))
        drain(
            trail.forwarder(url, ca=str(authority.certificate), certificate=str(shown.certificate), key=str(shown.key))
        )
        wait_until(lambda: len(server.messages) == 1)

    assert numbers(server.messages) == [1]


def test_a_receiver_that_reads_nothing_is_left_and_the_batch_stays(trail: Trail, authority: Authority) -> None:
    """It accepted the connection, and then it hangs: what its machine has not taken is not sent."""
    trail.record(audit.study_deleted(NODE, StudyContent(study_uid="1.2.1", patient_id="x" * 12_000)))

    with TlsSyslog(authority.issue("syslog"), is_deaf=True) as server:
        forwarder = trail.forwarder(f"tls://127.0.0.1:{server.port}", ca=str(authority.certificate))
        with pytest.raises(OSError, match="takes nothing"):
            drain(forwarder)

    assert json.loads((trail.folder / "forwarded.json").read_text())["offset"] == 0


def test_a_line_that_is_no_message_is_passed_over(trail: Trail, authority: Authority) -> None:
    """The machine went down while it was written; it would hold up all that follow."""
    trail.add(1)
    with (trail.folder / "audit-2026-03-01.log").open("ab") as file:
        file.write(b"<AuditMessage><Ev\n<Other/>\n\n")
    trail.add(2)

    with TlsSyslog(authority.issue("syslog")) as server, capture_logs() as logs:
        drain(trail.forwarder(f"tls://127.0.0.1:{server.port}", ca=str(authority.certificate)))
        wait_until(lambda: len(server.messages) == 2)

    assert numbers(server.messages) == [1, 2]
    assert [entry["event"] for entry in logs] == ["audit_line_damaged"] * 3


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"file": "audit-2026-03-01.log", "offset": "x"}'])
def test_a_damaged_position_sends_everything_again(trail: Trail, authority: Authority, content: bytes) -> None:
    """Rather twice than never."""
    trail.add(1, 2)
    (trail.folder / "forwarded.json").write_bytes(content)

    with TlsSyslog(authority.issue("syslog")) as server, capture_logs() as logs:
        drain(trail.forwarder(f"tls://127.0.0.1:{server.port}", ca=str(authority.certificate)))
        wait_until(lambda: len(server.messages) == 2)

    assert numbers(server.messages) == [1, 2]
    assert [entry["event"] for entry in logs] == ["audit_position_damaged"]


def test_a_file_that_was_cut_short_is_read_from_its_start(trail: Trail, authority: Authority) -> None:
    """By a tool that copies and truncates."""
    with TlsSyslog(authority.issue("syslog")) as server:
        forwarder = trail.forwarder(f"tls://127.0.0.1:{server.port}", ca=str(authority.certificate))
        trail.add(1, 2)
        drain(forwarder)
        (trail.folder / "audit-2026-03-01.log").write_bytes(b"")
        trail.add(3)
        drain(forwarder)
        wait_until(lambda: len(server.messages) == 3)

    assert numbers(server.messages) == [1, 2, 3]
