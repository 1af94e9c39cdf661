"""Fetching a study by QIDO-RS and WADO-RS over real sockets, and services that do not do as they should."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from dicom_node.association_server import Limits
from dicom_node.errors import RetrieveError
from dicom_node.identity import UID
from dicom_node.intake import Intake
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.multipart import DamagedMultipart, boundary_of, parts
from dicom_node.retrieve import Home, Pulled, pull
from dicom_node.retrieve_web import DicomWeb, take_apart
from dicom_node.road import Road
from dicom_node.settings import Peer, settings_from
from dicom_node.store import InstanceStore, dataset_digest
from tests.binaries import free_port
from tests.doubles.archive import stored
from tests.doubles.clock import ManualClock
from tests.doubles.datasets import STUDY, encoded
from tests.doubles.web_archive import BOUNDARY, WebArchive, multipart, running_web_archive

WANTED = UID(STUDY)
PATIENCE = timedelta(seconds=30)


class Puller:
    """A node that fetches from the peer `pacs`."""

    def __init__(self, folder: Path) -> None:
        self.sessions = open_ledger(f"sqlite:///{folder / 'ledger.sqlite'}")
        self.store = InstanceStore(folder, min_free_bytes=0)
        self._folder = folder
        self.kept: list[bytes] = []

    def pull(self, url: str, patience: timedelta = PATIENCE) -> Pulled:
        """Fetch the study from the service at `url`."""
        intake = Intake(self.sessions, self.store, ManualClock(), lambda _study: None)
        node = settings_from({"node": {"data_dir": str(self._folder)}}).node
        home = Home(node=node, sessions=self.sessions, store=self.store, receive=intake.receive)
        return pull(home, peer(url), WANTED, by=None, patience=patience, progress=lambda _here, _found: None)

    @property
    def digests(self) -> set[str]:
        """Return what the ledger says of the data sets."""
        with self.sessions() as session:
            return {*session.connection().exec_driver_sql("SELECT sha256 FROM instance").scalars()}


@pytest.fixture
def puller(tmp_path: Path) -> Iterator[Puller]:
    """A node that fetches, on SQLite."""
    made = Puller(tmp_path)
    yield made
    close_ledger(made.sessions)


def peer(url: str) -> Peer:
    """Return a peer with a DICOMweb service."""
    return Peer(name="pacs", ae_title="PACS", dicomweb_url=url)


def three() -> list[Dataset]:
    """Return the instances of the study."""
    return [stored(number) for number in (1, 2, 3)]


def test_a_study_comes_as_the_service_holds_it(puller: Puller) -> None:
    with running_web_archive(WebArchive(holds=[*three(), stored(9, study="1.2.3.9")])) as archive:
        pulled = puller.pull(archive.url)

    assert pulled.road is Road.WEB
    assert pulled.is_complete
    assert len(pulled.kept) == len(pulled.found) == 3
    assert puller.digests == {dataset_digest(encoded(one)) for one in three()}
    assert archive.asked[-1] == (
        f"/dicom-web/studies/{STUDY}",
        'multipart/related; type="application/dicom"; transfer-syntax=*',
    )


@pytest.mark.parametrize(("page", "ignores_offset"), [(2, False), (1000, False), (1000, True)])
def test_a_study_is_listed_page_by_page(page: int, ignores_offset: bool) -> None:
    with running_web_archive(WebArchive(holds=three(), page=page, ignores_offset=ignores_offset)) as archive:
        found = DicomWeb(peer(archive.url), PATIENCE, Limits(max_pdu=4096)).find_study(WANTED)

    assert len(found) == 3


@pytest.mark.parametrize("status", [None, 204, 404])
def test_a_study_that_the_service_does_not_know_is_said(puller: Puller, status: int | None) -> None:
    archive = WebArchive(holds=[], status={} if status is None else {"instances": status})
    with running_web_archive(archive), pytest.raises(RetrieveError, match=f"^pacs: knows no study {STUDY}$"):
        puller.pull(archive.url)


@pytest.mark.parametrize(
    "listing",
    ["text", {"a": 1}, [1], [[]], [{}], [{"00080018": {"Value": []}}], [{"00080018": {"Value": ["x"]}}], [None]],
)
def test_a_listing_that_is_none_is_said(puller: Puller, listing: Any) -> None:
    archive = WebArchive(holds=three(), listing=listing)
    with running_web_archive(archive), pytest.raises(RetrieveError, match="no list of instances in DICOM JSON"):
        puller.pull(archive.url)


def test_a_service_that_ignores_the_study_does_not_make_others_this_one(puller: Puller) -> None:
    other = {"00080018": {"Value": ["1.2.3"]}, "0020000D": {"Value": ["1.2.3.9"]}}
    archive = WebArchive(holds=three(), listing=[other])
    with running_web_archive(archive), pytest.raises(RetrieveError, match="knows no study"):
        puller.pull(archive.url)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (302, "it is elsewhere"),
        (401, "does not let us in"),
        (403, "does not let us in"),
        (404, "is peers.dicomweb_url the base URL?"),
        (406, "as they are stored; try --by get"),
        (418, "unexpected"),
        (500, "it failed"),
        (503, "it failed"),
    ],
)
def test_each_http_status_is_a_clear_line_without_the_server_s_words(puller: Puller, status: int, words: str) -> None:
    with running_web_archive(WebArchive(holds=three(), status={"study": status})) as archive:
        pulled = puller.pull(archive.url)

    assert pulled.error is not None
    assert pulled.error.startswith(f"pacs: WADO-RS: HTTP status {status}, ")
    assert words in pulled.error
    assert "patient" not in pulled.error
    assert len(pulled.missing) == 3


def test_a_listing_that_fails_is_said(puller: Puller) -> None:
    archive = WebArchive(holds=three(), status={"instances": 500})
    with running_web_archive(archive), pytest.raises(RetrieveError, match="QIDO-RS: HTTP status 500"):
        puller.pull(archive.url)


def test_what_came_before_the_connection_was_lost_is_kept_and_fetching_again_completes_it(puller: Puller) -> None:
    whole = multipart(three())
    archive = WebArchive(holds=three(), body=whole[: len(whole) - len(multipart(three()[2:])) // 2])
    with running_web_archive(archive):
        cut_off = puller.pull(archive.url)
        archive.body = None
        again = puller.pull(archive.url)

    assert cut_off.error == "pacs: WADO-RS: it ends in the middle"
    assert len(cut_off.kept) == 2
    assert cut_off.missing == [f"{STUDY}.3"]
    assert (len(again.kept), len(again.known)) == (1, 2)
    assert again.is_complete


def test_an_instance_of_another_study_and_what_is_none_are_refused(puller: Puller) -> None:
    foreign = multipart([stored(9, study="1.2.3.9"), *three()])
    no_file = f"--{BOUNDARY}\r\n\r\nno file\r\n".encode()
    with running_web_archive(WebArchive(holds=three(), body=no_file + foreign)) as archive:
        pulled = puller.pull(archive.url)

    assert pulled.is_complete
    assert pulled.refused == (
        (None, "a part of the answer is no DICOM file"),
        (f"{STUDY}.9", "of another study than was asked for"),
    )


def test_an_instance_that_is_another_than_its_file_says_is_refused_and_set_aside(puller: Puller) -> None:
    instances = three()
    instances[0].SOPInstanceUID = f"{STUDY}.8"
    body = multipart(instances)
    body = body.replace(f"{STUDY}.8".encode(), f"{STUDY}.7".encode(), 1)  # in group 2, which pydicom wrote anew
    with running_web_archive(WebArchive(holds=three(), body=body)) as archive:
        pulled = puller.pull(archive.url)

    assert pulled.refused == ((f"{STUDY}.7", "SOP Instance UID differs from the command's"),)
    assert len([*puller.store.path("quarantine").iterdir()]) == 1


@pytest.mark.parametrize("content_type", ["text/html", "application/dicom", "multipart/related", ""])
def test_an_answer_that_is_not_multipart_is_said(puller: Puller, content_type: str) -> None:
    with running_web_archive(WebArchive(holds=three(), content_type=content_type)) as archive:
        pulled = puller.pull(archive.url)

    assert pulled.error is not None
    assert "not multipart/related" in pulled.error


def test_an_instance_that_is_too_long_is_not_taken_into_memory() -> None:
    with (
        running_web_archive(WebArchive(holds=three())) as archive,
        pytest.raises(RetrieveError, match="longer than 100 bytes"),
    ):
        next(DicomWeb(peer(archive.url), PATIENCE, Limits(max_pdu=4096, max_object=100)).instances(WANTED))


def test_a_silent_service_is_given_up(puller: Puller) -> None:
    archive = WebArchive(holds=three(), is_silent=True)
    with running_web_archive(archive), pytest.raises(RetrieveError, match="silent for 1 s, given up"):
        puller.pull(archive.url, timedelta(seconds=1))


def test_a_service_that_is_down_is_said(puller: Puller) -> None:
    with pytest.raises(RetrieveError, match=r"^pacs: DICOMweb: no connection; check peers.dicomweb_url"):
        puller.pull(f"http://127.0.0.1:{free_port()}/dicom-web")


# --- multipart ---


@given(
    contents=st.lists(st.binary(max_size=60).filter(lambda content: b"\r\n--cut" not in content), max_size=5),
    sizes=st.lists(st.integers(1, 40), min_size=1),
    headers=st.sampled_from((b"", b"A: b\r\n", b"Content-Type: x\r\nContent-Length: 7\r\n")),
)
def test_parts_are_whole_wherever_the_body_is_cut(contents: list[bytes], sizes: list[int], headers: bytes) -> None:
    """Empty parts, and contents that look like an end of a line, too."""
    body = b"preamble" if sizes[0] % 2 else b""
    body = (body + b"\r\n").removeprefix(b"\r\n" if not body else b"-")
    body += b"".join(b"--cut \r\n" + headers + b"\r\n" + content + b"\r\n" for content in contents) + b"--cut--"

    assert [bytes(part) for part in parts(_cut(body, sizes), b"cut", 1000)] == contents


@given(num_bytes=st.integers(0, 200), sizes=st.lists(st.integers(1, 40), min_size=1))
def test_a_body_that_ends_early_never_passes_for_whole(num_bytes: int, sizes: list[int]) -> None:
    body = b"--cut\r\n\r\n" + b"a" * 50 + b"\r\n--cut\r\nA: b\r\n\r\n" + b"b" * 50 + b"\r\n--cut--"
    whole = []

    with pytest.raises(DamagedMultipart):
        whole.extend(bytes(part) for part in parts(_cut(body[: min(num_bytes, len(body) - 1)], sizes), b"cut", 1000))
    assert whole == [b"a" * 50, b"b" * 50][: len(whole)]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"--cut\r\n\r\n" + b"a" * 300, "longer than 100 bytes"),
        (b"--cut\r\n\r\n" + b"a" * 101 + b"\r\n--cut--", "longer than 100 bytes"),
        (b"--cut\r\n" + b"a" * 100_000, "longer than 65536 bytes"),
        (b"a" * 100_000, "longer than 65536 bytes"),
        (b"--cut tail\r\n\r\na", "follows a boundary"),
    ],
)
def test_what_is_too_long_or_odd_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(DamagedMultipart, match=words):
        list(parts(_cut(body, [50]), b"cut", 100))


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', b"abc"),
        ('Multipart/Related; boundary="a b"; type="application/dicom"', b"a b"),
        ("multipart/related", None),
        ('multipart/related; boundary=""', None),
        (f"multipart/related; boundary={'a' * 71}", None),
        ("application/dicom; boundary=abc", None),
    ],
)
def test_a_boundary_is_what_the_content_type_says(content_type: str, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary


@given(st.binary(max_size=300))
def test_no_bytes_make_taking_a_file_apart_fail(content: bytes) -> None:
    for file in (content, bytes(128) + b"DICM" + content, bytes(128) + b"DICM\x02\x00" + content):
        assert take_apart(bytearray(file)) is None or file.startswith(bytes(128))


def test_a_group_2_whose_length_is_wrong_is_read_all_the_same() -> None:
    file = bytearray(multipart([stored(1)]).split(b"\r\n\r\n", 1)[1])
    file = file[: file.rindex(b"\r\n--")]
    file[140:144] = b"\xff\xff\xff\x00"

    part = take_apart(file)

    assert part is not None
    assert part.dataset == encoded(stored(1))
    assert (part.sop_instance, part.transfer_syntax) == (f"{STUDY}.1", "1.2.840.10008.1.2.1")


def _cut(body: bytes, sizes: list[int]) -> Iterator[bytes]:
    position, number = 0, 0
    while position < len(body):
        size = sizes[number % len(sizes)]
        yield body[position : position + size]
        position += size
        number += 1
