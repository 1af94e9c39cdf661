"""Fetching a study from a PACS over real sockets: C-FIND, C-GET, C-MOVE, and archives that do not do as they should."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_STORE
from sqlalchemy import select

from dicom_node import association_server
from dicom_node.errors import ConfigurationError, RetrieveError
from dicom_node.holdings import held
from dicom_node.identity import UID, result_uid
from dicom_node.intake import Intake, Received
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.schema import Instance
from dicom_node.pull_command import check
from dicom_node.query_retrieve import storage_contexts
from dicom_node.report.sr_class import SR_CLASSES, uid_in_class
from dicom_node.retrieve import Home, Pulled, pull
from dicom_node.road import Road
from dicom_node.settings import Peer, settings_from
from dicom_node.sop_classes import STORED
from dicom_node.store import InstanceStore, dataset_digest
from tests.binaries import free_port
from tests.doubles.analyst import ENSEMBLE, Analyst
from tests.doubles.archive import FIND, GET, MOVE, Archive, running_archive, stored
from tests.doubles.arrivals import Arrivals, instance
from tests.doubles.clock import ManualClock
from tests.doubles.datasets import STUDY, encoded
from tests.doubles.pacs import Conduct, running_pacs
from tests.doubles.receiver import Inbox, running_receiver
from tests.doubles.wire_peer import EXPLICIT_LITTLE, IMPLICIT_LITTLE, JPEG_BASELINE, US_MULTIFRAME

# pynetdicom leaves a socket that could not connect, and one whose peer was quicker, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")

PATIENCE = timedelta(seconds=30)
WANTED = UID(STUDY)
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"


@dataclass(kw_only=True)
class Puller:
    """A node that fetches from the peer `pacs`."""

    folder: Path
    sessions: Sessions
    store: InstanceStore
    node_port: int = 0
    told: tuple[int, int] = (0, 0)

    def pull(self, archive: Archive, by: Road | None = None, *, patience: timedelta = PATIENCE) -> Pulled:
        """Fetch the study."""
        return pull(self.home, self.peer(archive.port), WANTED, by=by, patience=patience, progress=self.tell)

    @property
    def intake(self) -> Intake:
        """Return the node's intake."""
        return Intake(self.sessions, self.store, ManualClock(), lambda _study: None)

    @property
    def home(self) -> Home:
        """Return where a study comes to."""
        node = settings_from({"node": {"data_dir": str(self.folder), "port": self.node_port}}).node
        return Home(node=node, sessions=self.sessions, store=self.store, receive=self.intake.receive)

    def peer(self, port: int) -> Peer:
        """Return the archive as the configuration names it."""
        return Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port)

    def tell(self, here: int, found: int) -> None:
        """Remember how far it is."""
        self.told = (here, found)

    @property
    def rows(self) -> dict[str, Instance]:
        """Return the ledger's instances by their UID."""
        with self.sessions() as session:
            return {row.sop_instance_uid: row for row in session.scalars(select(Instance))}


@pytest.fixture
def puller(tmp_path: Path) -> Iterator[Puller]:
    """A node that fetches, on SQLite."""
    sessions = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield Puller(folder=tmp_path, sessions=sessions, store=InstanceStore(tmp_path, min_free_bytes=0))
    close_ledger(sessions)


@contextmanager
def listening(puller: Puller) -> Iterator[int]:
    """Run the node's receiving end; give its port."""
    with running_receiver(puller.folder / "receiver", puller.intake.receive) as receiver:
        puller.node_port = receiver.port
        yield receiver.port


def known_instance(study: str, sop: str) -> Received:
    """Return an instance that came another way, with the bytes of the archive's."""
    number = int(sop.rpartition(".")[2])
    return instance(UID(study), UID(sop), encoded(stored(number, study=study)))


def uids(instances: list[Dataset]) -> set[str]:
    """Return their SOP Instance UIDs."""
    return {str(one.SOPInstanceUID) for one in instances}


# --- C-GET ---


def test_a_study_comes_by_c_get_as_the_archive_holds_it(puller: Puller) -> None:
    instances = [stored(number) for number in (1, 2, 3)]
    with running_archive(Archive(holds=[*instances, stored(9, study="1.2.3.9")])) as archive:
        pulled = puller.pull(archive)

    assert pulled.road is Road.GET
    assert pulled.is_complete
    assert pulled.kept == pulled.found == uids(instances)
    assert (pulled.known, pulled.refused, pulled.missing, pulled.error) == (set(), (), [], None)
    assert {row.sha256 for row in puller.rows.values()} == {dataset_digest(encoded(one)) for one in instances}
    assert {row.calling_ae for row in puller.rows.values()} == {"PACS"}
    assert archive.statuses == [0x0000] * 3
    assert puller.told == (3, 3)


def test_fetched_again_nothing_changes(puller: Puller) -> None:
    with running_archive(Archive(holds=[stored(1), stored(2)])) as archive:
        puller.pull(archive)
        before = set(puller.rows)
        again = puller.pull(archive)

    assert again.is_complete
    assert (len(again.kept), len(again.known)) == (0, 2)
    assert set(puller.rows) == before


@pytest.mark.parametrize("syntax", [JPEG_BASELINE, IMPLICIT_LITTLE, "1.2.840.10008.1.2.5"])
def test_an_instance_comes_in_the_transfer_syntax_that_the_archive_has(puller: Puller, syntax: str) -> None:
    instance = stored(1, syntax=syntax)
    if syntax not in (EXPLICIT_LITTLE, IMPLICIT_LITTLE):
        instance.add_new(0x7FE00010, "OB", b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x02\0\0\0\x01\x02")
        instance["PixelData"].is_undefined_length = True
    with running_archive(Archive(holds=[instance])) as archive:
        assert puller.pull(archive).is_complete

    assert [row.transfer_syntax_uid for row in puller.rows.values()] == [syntax]
    assert archive.syntaxes[0] == JPEG_BASELINE  # one that takes the first accepted need not decode
    assert set(archive.syntaxes) > {EXPLICIT_LITTLE, IMPLICIT_LITTLE}


def test_an_archive_that_says_nothing_of_roles_is_taken_at_its_deeds(puller: Puller) -> None:
    with running_archive(Archive(holds=[stored(1)]), grants_roles=False) as archive:
        assert puller.pull(archive).is_complete


def test_an_archive_that_names_no_classes_is_offered_those_of_an_echo_study(puller: Puller) -> None:
    class Terse(Archive):
        def on_c_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
            for status, match in super().on_c_find(event):
                if match is not None and "SOPClassUID" in match:
                    match.SOPClassUID = None
                yield status, match

    with running_archive(Terse(holds=[stored(1), stored(2, sop_class=COMPREHENSIVE_SR)])) as archive:
        assert puller.pull(archive).is_complete


@pytest.mark.parametrize("number", [1, 5, 26, 63, 80])
def test_the_contexts_of_a_c_get_fit_into_one_association(number: int) -> None:
    classes = [f"{US_MULTIFRAME}.{one}" for one in range(number)]

    contexts = storage_contexts(classes)

    assert 2 + sum(len(syntaxes) for syntaxes in contexts.values()) <= 128
    assert list(contexts) == classes[:63]
    assert all(syntaxes[-2:] == [EXPLICIT_LITTLE, IMPLICIT_LITTLE] for syntaxes in contexts.values())
    assert all(len(set(syntaxes)) == len(syntaxes) for syntaxes in contexts.values())
    if number <= 26:
        assert all(syntaxes[0] == JPEG_BASELINE for syntaxes in contexts.values())


def test_what_has_no_pixels_takes_no_contexts_from_what_has() -> None:
    contexts = storage_contexts([one.uid for one in STORED])

    assert contexts[COMPREHENSIVE_SR] == [EXPLICIT_LITTLE, IMPLICIT_LITTLE]
    assert JPEG_BASELINE in contexts[US_MULTIFRAME]


def test_what_arrived_before_an_abort_is_kept_and_fetching_again_completes_it(puller: Puller) -> None:
    instances = [stored(number) for number in (1, 2, 3)]
    with running_archive(Archive(holds=instances, abort_after=2)) as archive:
        cut_off = puller.pull(archive)
        archive.abort_after = None
        again = puller.pull(archive)

    assert not cut_off.is_complete
    assert len(cut_off.kept) == 2
    assert cut_off.missing == [f"{STUDY}.3"]
    assert cut_off.error == "pacs: C-GET: aborted, or the connection was lost, in the middle"
    with pytest.raises(RetrieveError, match=r"2 of 3 instances of study .* are here; the same command again fetches"):
        check(cut_off)
    assert again.is_complete
    assert (len(again.kept), len(again.known)) == (1, 2)


def test_an_instance_of_another_study_is_refused_and_said(puller: Puller) -> None:
    foreign = stored(9, study="1.2.3.9")
    with running_archive(Archive(holds=[stored(1)], sends=[foreign, stored(1)])) as archive:
        pulled = puller.pull(archive)

    assert archive.statuses == [0x0124, 0x0000]
    assert pulled.refused == ((foreign.SOPInstanceUID, "of another study than was asked for"),)
    assert set(puller.rows) == {f"{STUDY}.1"}
    assert pulled.is_complete  # of what was asked for, all is here


def test_what_the_intake_refuses_is_listed_and_the_rest_comes(puller: Puller) -> None:
    puller.intake.receive(known_instance("1.2.3.8", f"{STUDY}.1"))
    with running_archive(Archive(holds=[stored(1), stored(2)])) as archive:
        pulled = puller.pull(archive)

    assert archive.statuses == [0xC010, 0x0000]
    assert pulled.refused == ((f"{STUDY}.1", "SOP Instance UID is known under another study"),)
    assert pulled.kept == {f"{STUDY}.2"}
    assert pulled.missing == []
    with pytest.raises(RetrieveError, match="1 of 2 instances"):
        check(pulled)


def test_what_is_no_whole_instance_is_refused_and_set_aside(puller: Puller) -> None:
    damaged = stored(1)
    del damaged.SeriesInstanceUID
    with running_archive(Archive(holds=[stored(1), stored(2)], sends=[damaged, stored(2)])) as archive:
        pulled = puller.pull(archive)

    assert archive.statuses == [0xC001, 0x0000]
    assert pulled.refused == ((f"{STUDY}.1", "Series Instance UID is missing or no UID"),)
    assert len([*puller.store.path("quarantine").iterdir()]) == 1


def test_a_sub_operation_without_a_class_is_refused_and_the_rest_comes(puller: Puller) -> None:
    class Odd(Archive):
        def on_c_get(self, event: evt.Event) -> Iterator[object]:
            request = C_STORE()
            request.MessageID, request.Priority, request.AffectedSOPInstanceUID = 77, 0, UID("1.2.3")
            request.DataSet = BytesIO(encoded(stored(1)))
            (context, *_) = [one for one in event.assoc.accepted_contexts if one.abstract_syntax == US_MULTIFRAME]
            event.assoc.dimse.send_msg(request, context.context_id)
            event.assoc.dimse.get_msg(block=True)
            yield from super().on_c_get(event)

    with running_archive(Odd(holds=[stored(1)])) as archive:
        assert puller.pull(archive).is_complete
    assert archive.statuses == [0x0122, 0x0000]


def test_a_full_disk_is_said_for_each_instance(puller: Puller) -> None:
    puller.store = InstanceStore(puller.folder, min_free_bytes=1 << 60)
    with running_archive(Archive(holds=[stored(1), stored(2)])) as archive:
        pulled = puller.pull(archive)

    assert archive.statuses == [0xA700, 0xA700]
    assert {reason for _, reason in pulled.refused} == {"out of space or disk failure, send again later"}
    assert pulled.kept == set()
    assert puller.rows == {}


def test_what_an_archive_does_not_send_is_missing(puller: Puller) -> None:
    with running_archive(Archive(holds=[stored(1), stored(2)], sends=[stored(2)])) as archive:
        pulled = puller.pull(archive)

    assert pulled.missing == [f"{STUDY}.1"]
    assert pulled.error is None
    with pytest.raises(RetrieveError, match="did not send all; 1 of 2 instances"):
        check(pulled)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0xA701, "out of resources and could not count"),
        (0xA702, "out of resources and could not send"),
        (0xA900, "does not understand the request"),
        (0xC123, "could not do it"),
        (0x0122, "does not do this"),
        (0x0124, "does not allow this"),
        (0xFE00, "cancelled"),
        (0xB000, "some instances could not be sent"),
        (0x0110, "failed"),
    ],
)
@pytest.mark.parametrize("road", [Road.GET, Road.MOVE])
def test_each_status_that_ends_a_retrieval_is_a_clear_line(puller: Puller, road: Road, status: int, words: str) -> None:
    archive = Archive(holds=[stored(1)], status=status)
    with listening(puller) as port, running_archive(archive):
        archive.destination = ("127.0.0.1", port)
        pulled = puller.pull(archive, road)

    assert pulled.error is not None
    assert pulled.error.startswith(f"pacs: {road.label}: status 0x{status:04X}, ")
    assert words in pulled.error
    assert pulled.missing == [f"{STUDY}.1"]
    with pytest.raises(RetrieveError):
        check(pulled)


# --- C-FIND and the association ---


def test_a_study_that_the_archive_does_not_know_is_said(puller: Puller) -> None:
    with (
        running_archive(Archive(holds=[stored(1, study="1.2.3.9")])) as archive,
        pytest.raises(RetrieveError, match=f"^pacs: knows no study {STUDY}$"),
    ):
        puller.pull(archive)


def test_an_archive_that_ignores_the_key_does_not_make_other_studies_this_one(puller: Puller) -> None:
    archive = Archive(holds=[stored(1), stored(9, study="1.2.3.9")], sends=[stored(1)], ignores_keys=True)
    with running_archive(archive):
        assert puller.pull(archive).found == {f"{STUDY}.1"}


def test_a_failed_query_is_said_with_its_level(puller: Puller) -> None:
    with (
        running_archive(Archive(holds=[stored(1)], find_status=0xA700)) as archive,
        pytest.raises(RetrieveError, match="C-FIND at STUDY level: status 0xA700, it is out of resources"),
    ):
        puller.pull(archive)


@pytest.mark.parametrize(
    ("services", "words"),
    [
        ((GET, MOVE), "takes no Study Root C-FIND from ECHONODE"),
        ((FIND,), "takes neither Study Root C-GET nor C-MOVE from ECHONODE"),
        (("1.2.840.10008.1.1",), "accepted none of the presentation contexts; it must know the caller ECHONODE"),
    ],
)
def test_a_service_that_the_archive_does_not_offer_is_named(
    puller: Puller, services: tuple[str, ...], words: str
) -> None:
    with (
        running_archive(Archive(holds=[stored(1)]), services=services) as archive,
        pytest.raises(RetrieveError, match=words),
    ):
        puller.pull(archive)


def test_a_c_get_that_is_asked_for_and_not_offered_names_the_other_road(puller: Puller) -> None:
    with running_archive(Archive(holds=[stored(1)]), services=(FIND, MOVE)) as archive:
        pulled = puller.pull(archive, Road.GET)

    assert pulled.error == "pacs: takes no Study Root C-GET from ECHONODE; try --by move"


def test_an_archive_that_does_not_know_us_is_told_apart_from_one_that_is_down(puller: Puller) -> None:
    with (
        running_pacs(Conduct.REJECT_PERMANENT) as pacs,
        pytest.raises(RetrieveError, match=r"rejected: .*; it must know the caller ECHONODE"),
    ):
        puller.pull(Archive(holds=[], port=pacs.port))
    with pytest.raises(RetrieveError, match=r"^pacs: no association with .* try dicom-node echo pacs$"):
        puller.pull(Archive(holds=[], port=free_port()))


@pytest.mark.parametrize("service", ["find", "get", "move"])
def test_a_silent_archive_is_given_up(puller: Puller, service: str) -> None:
    archive = Archive(holds=[stored(1)], hangs_in=service)
    road = Road.MOVE if service == "move" else Road.GET
    said = "nothing"
    with listening(puller) as port, running_archive(archive):
        archive.destination = ("127.0.0.1", port)
        try:
            said = puller.pull(archive, road, patience=timedelta(seconds=1)).error or said
        except RetrieveError as error:
            said = str(error)

    assert said.startswith("pacs: silent for ")


def test_an_archive_that_is_slow_and_gets_on_is_not_given_up(puller: Puller) -> None:
    archive = Archive(holds=[stored(number) for number in range(1, 5)], pause_seconds=1.0)
    with running_archive(archive):
        pulled = puller.pull(archive, patience=timedelta(seconds=3))

    assert pulled.is_complete


def test_a_disk_that_is_slow_is_no_silence_of_the_archive(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive waits for us meanwhile."""
    import time

    keep = InstanceStore.keep

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(1.5)
        return keep(*arguments, **options)

    monkeypatch.setattr(InstanceStore, "keep", slowly)
    with running_archive(Archive(holds=[stored(1)])) as archive:
        assert puller.pull(archive, patience=timedelta(seconds=1)).error is None


def test_an_archive_is_bounded_like_any_other_sender(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    small = association_server.Limits(max_pdu=131072, max_object=200_000)
    monkeypatch.setattr("dicom_node.inquiry.Limits.of", lambda _node: small)
    large = stored(2)
    large.add_new(0x7FE00010, "OB", bytes(300_000))
    with running_archive(Archive(holds=[stored(1), large, stored(3)])) as archive:
        pulled = puller.pull(archive)

    assert pulled.kept == {f"{STUDY}.1"}
    assert pulled.missing == [f"{STUDY}.2", f"{STUDY}.3"]
    assert pulled.error is not None


# --- C-MOVE ---


@pytest.mark.parametrize("afterwards", [False, True])
def test_where_c_get_is_not_taken_the_study_comes_by_c_move_to_the_node(puller: Puller, afterwards: bool) -> None:
    archive = Archive(holds=[stored(1), stored(2)], sends_afterwards=afterwards)
    puller.intake.receive(known_instance(STUDY, f"{STUDY}.1"))
    with listening(puller) as port, running_archive(archive, services=(FIND, MOVE)):
        archive.destination = ("127.0.0.1", port)
        pulled = puller.pull(archive)

    assert pulled.road is Road.MOVE
    assert pulled.is_complete, pulled.error
    assert pulled.kept == {f"{STUDY}.2"}
    assert pulled.known == {f"{STUDY}.1"}


def test_a_destination_that_the_archive_does_not_know_is_said_with_the_remedy(puller: Puller) -> None:
    archive = Archive(holds=[stored(1)])
    with listening(puller) as port, running_archive(archive):
        pulled = puller.pull(archive, Road.MOVE)

    assert pulled.error == (
        "pacs: C-MOVE: status 0xA801, it does not know our AE title as a destination; "
        f"it must know ECHONODE with this machine's address and port {port}, and reach it"
    )


def test_a_c_move_needs_the_running_node(puller: Puller) -> None:
    puller.node_port = free_port()
    with (
        running_archive(Archive(holds=[stored(1)])) as archive,
        pytest.raises(RetrieveError, match=f"nothing listens on 127.0.0.1:{puller.node_port}: start dicom-node serve"),
    ):
        puller.pull(archive, Road.MOVE)


def test_a_node_on_a_free_port_is_found_by_what_it_says_of_itself(puller: Puller) -> None:
    archive = Archive(holds=[stored(1)])
    with listening(puller) as port, running_archive(archive):
        archive.destination = ("127.0.0.1", port)
        puller.node_port = 0
        (puller.folder / "serve.json").write_text(json.dumps({"port": port}))

        assert puller.pull(archive, Road.MOVE).is_complete


def test_a_move_that_goes_elsewhere_is_said(puller: Puller, tmp_path: Path) -> None:
    """Only when the archive, which says all the while that it gets on, has ended."""
    archive = Archive(holds=[stored(number) for number in range(1, 5)], pause_seconds=1.0)
    elsewhere = Puller(folder=tmp_path / "else", sessions=puller.sessions, store=puller.store)
    with listening(puller), running_receiver(tmp_path / "b", Inbox().receive) as other, running_archive(archive):
        archive.destination = ("127.0.0.1", other.port)
        pulled = puller.pull(archive, Road.MOVE, patience=timedelta(seconds=3))

    assert elsewhere.rows == {}
    assert pulled.error is not None
    assert "said that all is sent, and not all arrived here" in pulled.error


# --- what the node holds ---


def test_our_own_reports_in_the_archive_count_as_known(puller: Puller) -> None:
    clock = ManualClock()
    study_id = puller.intake.receive(known_instance(STUDY, f"{STUDY}.1")).study_id
    with puller.sessions.begin() as session:
        session.connection().exec_driver_sql("UPDATE study SET state='analysing'")
    Analyst(puller.sessions, clock).report(study_id)
    report = stored(2, sop_class=COMPREHENSIVE_SR)
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = result_uid(WANTED, 1, ENSEMBLE, "sr")
    with running_archive(Archive(holds=[stored(3), report])) as archive:
        pulled = puller.pull(archive)

    assert pulled.is_complete
    assert pulled.known == {report.SOPInstanceUID}
    assert pulled.kept == {f"{STUDY}.3"}


def test_held_are_files_that_are_there_and_what_the_node_wrote(
    sessions: Sessions, store: InstanceStore, arrivals: Arrivals, analyst: Analyst
) -> None:
    here, gone = arrivals.new_uid(), arrivals.new_uid()
    study = UID("1.2.826.0.1.1")
    study_id = arrivals.send(study, here)
    arrivals.send(study, gone)
    arrivals.send(UID("1.2.3.4"), UID("1.2.3.4.1"))
    with sessions.begin() as session:
        session.connection().exec_driver_sql("UPDATE study SET state='analysing', completed_at=received_at")
    analyst.report(study_id)
    with sessions() as session:
        store.remove(session.scalars(select(Instance.path).where(Instance.sop_instance_uid == gone)).one())
    written = result_uid(study, 1, ENSEMBLE, "sr")
    sent_as = uid_in_class(written, SR_CLASSES["enhanced"])

    wanted = {here, gone, written, sent_as, UID("1.2.3.4.1"), UID("1.2.3.5")}
    assert held(sessions, store, study, wanted) == {here, written, sent_as}
    assert held(sessions, store, study, {UID("1.2.3.5")}) == set()


def test_a_peer_without_an_address_is_a_mistake_of_the_configuration(puller: Puller) -> None:
    peer = Peer(name="cart", ae_title="CART")
    for by in (None, Road.GET, Road.MOVE, Road.WEB):
        with pytest.raises(ConfigurationError, match=r"cart has no (host|dicomweb_url)"):
            pull(puller.home, peer, WANTED, by=by, patience=PATIENCE, progress=puller.tell)


# --- the command ---

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `dicom-node pull` against an archive on this port."""

    def run(port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        config = tmp_path / "node.toml"
        config.write_text(
            f'[node]\ndata_dir = "{tmp_path / "var"}"\nmin_free_bytes = 0\n'
            f'[[peers]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {port}\n'
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ECHO_NODE")}
        command = [sys.executable, "-m", "dicom_node", "pull", *arguments, "--config", str(config)]
        return subprocess.run(command, capture_output=True, text=True, env=kept, timeout=120, check=False)

    return run


def test_the_command_prints_json_alone_and_ends_with_0(run: Run, tmp_path: Path) -> None:
    with running_archive(Archive(holds=[stored(1), stored(2)])) as archive:
        ended = run(archive.port, "pacs", STUDY, "--json")
        again = run(archive.port, "pacs", STUDY)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == {
        "study_instance_uid": STUDY,
        "peer": "pacs",
        "by": "get",
        "found": 2,
        "kept": 2,
        "known": 0,
        "refused": [],
        "missing": [],
        "error": None,
    }
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"study {STUDY} from pacs by C-GET: 2 found, 0 kept, 2 known\n"
    assert (tmp_path / "var" / "ledger.sqlite").stat().st_mode & 0o077 == 0


def test_the_command_lists_what_did_not_come_and_ends_with_1_and_one_line(run: Run) -> None:
    archive = Archive(holds=[stored(1), stored(2)], sends=[stored(9, study="1.2.3.9"), stored(1)])
    with running_archive(archive):
        ended = run(archive.port, "pacs", STUDY)
        as_json = run(archive.port, "pacs", STUDY, "--json")

    assert ended.returncode == as_json.returncode == 1
    assert ended.stdout.splitlines() == [
        f"study {STUDY} from pacs by C-GET: 2 found, 1 kept, 0 known",
        f"refused {STUDY}.9: of another study than was asked for",
        f"missing {STUDY}.2",
    ]
    assert len(ended.stderr.splitlines()) == len(as_json.stderr.splitlines()) == 1
    assert json.loads(as_json.stdout)["missing"] == [f"{STUDY}.2"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("pacs", STUDY), 1, "pacs: no association"),
        (("pacs", "no-uid"), 2, "not a DICOM UID"),
        (("pacs", STUDY, "--by", "web"), 2, "pacs has no dicomweb_url"),
        (("pacs", STUDY, "--by", "mail", "--patience", "0"), 2, "--by"),
    ],
)
def test_a_wrong_call_or_an_archive_that_is_down_is_one_line(
    run: Run, arguments: tuple[str, ...], code: int, words: str
) -> None:
    ended = run(free_port(), *arguments)

    assert ended.returncode == code
    assert ended.stdout == ""
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert words in ended.stderr
