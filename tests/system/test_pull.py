"""Fetching a study from real archives: Orthanc, by each road, and dcmtk's dcmqrscp."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE
from sqlalchemy import select

from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.ledger.schema import Instance
from dicom_node.ledger.views import StudyJson
from dicom_node.store import dataset_digest
from model.tasks import View
from tests.binaries import free_port, require_binary
from tests.doubles.archive import stored
from tests.doubles.datasets import STUDY, data_part
from tests.system.nodes import DEADLINE, Node, configured, running, wait_until
from tests.system.orthanc import DICOMWEB, Orthanc, running_orthanc
from tests.system.studies import part10, phantom_study
from worker.phantom_study import Shot

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
ROADS = ["get", "move", "web"]
JPEG_IN_AND_OUT = ("+xy", "-xy")
"""It knows one syntax beside the plain ones."""


def study() -> list[Dataset]:
    """Return a study as carts make it: compressed loops, and a still without pixels that is not compressed."""
    loops = phantom_study(seed=5, shots=(Shot(view=View.A4C, num_frames=20), Shot(view=View.PLAX, num_frames=20)))
    plain = stored(1, study=loops[0].StudyInstanceUID)
    plain.PatientID = "PHANTOM"
    return [*loops, plain]


@contextmanager
def archive(folder: Path, node: Node, port: int) -> Iterator[Orthanc]:
    """Run an Orthanc that the node knows as `pacs`, with its DICOMweb service."""
    with running_orthanc(folder, node_ae="ECHONODE", node_port=node.port, dicom_port=port, plugins=(DICOMWEB,)) as pacs:
        text = node.config.read_text().replace("receives_reports = true", "receives_reports = false")
        node.config.write_text(text.replace("[study]", f'dicomweb_url = "{pacs.url}/dicom-web/"\n[study]', 1))
        yield pacs


def pull(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `dicom-node pull`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ECHO_NODE")}
    command = [sys.executable, "-m", "dicom_node", "pull", "pacs", *arguments, "--config", str(node.config)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=DEADLINE, check=False)


def pulled(node: Node, *arguments: str) -> dict[str, Any]:
    """Return what `dicom-node pull --json` prints of a study that came whole."""
    ended = pull(node, *arguments, "--json")
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    content: dict[str, Any] = json.loads(ended.stdout)
    return content


def kept(node: Node) -> Mapping[str, tuple[str, str]]:
    """Return transfer syntax and digest of each instance in the ledger."""
    sessions = open_ledger(node.database_url)
    try:
        with sessions() as session:
            rows = session.execute(select(Instance.sop_instance_uid, Instance.transfer_syntax_uid, Instance.sha256))
            return {uid: (syntax, digest) for uid, syntax, digest in rows}
    finally:
        close_ledger(sessions)


@pytest.mark.parametrize("road", ROADS)
def test_a_study_comes_from_orthanc_as_it_was_stored_there(tmp_path: Path, road: str) -> None:
    instances, port = study(), free_port()
    node = configured(tmp_path / "node", pacs_port=port, quiet=600.0)
    uid = instances[0].StudyInstanceUID
    with archive(tmp_path / "pacs", node, port) as pacs:
        ids = [pacs.upload(part10(one)) for one in instances]
        files = [pacs.file(one) for one in ids]
        if road == "move":
            refused = pull(node, uid, "--by", road)
            with running(node):
                first = pulled(node, uid, "--by", road)
            assert refused.returncode == 1
            assert "start dicom-node serve first" in refused.stderr
        else:
            first = pulled(node, uid, "--by", road)
            again = pulled(node, uid, "--by", road)
            assert (again["kept"], again["known"]) == (0, 3)

    assert (first["by"], first["found"], first["kept"], first["known"]) == (road, 3, 3, 0)
    assert {syntax for syntax, _ in kept(node).values()} == {JPEG_BASELINE, ExplicitVRLittleEndian}
    assert {digest for _, digest in kept(node).values()} == {dataset_digest(data_part(file)) for file in files}


def test_a_pulled_study_is_reported_as_any_other(tmp_path: Path) -> None:
    instances, port = study(), free_port()
    node = configured(tmp_path / "node", pacs_port=port, quiet=2.0)
    uid = instances[0].StudyInstanceUID
    with archive(tmp_path / "pacs", node, port) as pacs:
        for one in instances:
            pacs.upload(part10(one))
        with running(node):
            assert pulled(node, uid)["by"] == "web"  # the road of a peer with a DICOMweb URL

            def reported() -> StudyJson | None:
                found = node.study(uid)
                return found if found is not None and found["reports"] else None

            found = wait_until(reported, "the study is reported", node)

    assert found["loops_analysed"] == 2


def test_a_study_that_orthanc_does_not_know_is_one_line(tmp_path: Path) -> None:
    port = free_port()
    node = configured(tmp_path / "node", pacs_port=port)
    with archive(tmp_path / "pacs", node, port):
        ended = [pull(node, STUDY, "--by", road) for road in ("get", "web")]

    assert [one.returncode for one in ended] == [1, 1]
    assert {one.stdout for one in ended} == {""}
    assert {one.stderr for one in ended} == {f"dicom-node: pacs: knows no study {STUDY}\n"}


def test_a_study_comes_from_dcmqrscp(tmp_path: Path) -> None:
    loops, port = study()[:2], free_port()
    node = configured(tmp_path / "node", pacs_port=port, quiet=600.0)
    with dcmqrscp(tmp_path / "pacs", port, node_port=node.port):
        store(port, loops)
        first = pulled(node, loops[0].StudyInstanceUID)

    assert (first["by"], first["found"], first["kept"]) == ("get", 2, 2)
    assert {syntax for syntax, _ in kept(node).values()} == {JPEG_BASELINE}


def test_a_destination_that_dcmqrscp_does_not_know_is_said_with_the_remedy(tmp_path: Path) -> None:
    loops, port = study()[:2], free_port()
    node = configured(tmp_path / "node", pacs_port=port)
    with (
        dcmqrscp(tmp_path / "pacs", port, node_port=node.port, node_ae="ANOTHER"),
        socket.create_server(("127.0.0.1", node.port)),
    ):
        store(port, loops)
        ended = pull(node, loops[0].StudyInstanceUID, "--by", "move")

    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "status 0xA801, it does not know our AE title as a destination; it must know ECHONODE with" in ended.stderr


@contextmanager
def dcmqrscp(folder: Path, port: int, *, node_port: int, node_ae: str = "ECHONODE") -> Iterator[None]:
    """Run dcmtk's archive, which knows the node under this AE title."""
    (folder / "db").mkdir(parents=True)
    config = folder / "dcmqrscp.cfg"
    config.write_text(
        f"""NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
node = ({node_ae}, 127.0.0.1, {node_port})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
ORTHANC {folder / "db"} RW (200, 1024mb) ANY
AETable END
"""
    )
    command = [require_binary("dcmqrscp"), "-c", str(config), *JPEG_IN_AND_OUT]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for_port(port, process)
        yield
    finally:
        process.terminate()
        process.wait(30)


def store(port: int, instances: list[Dataset]) -> None:
    """Send instances to the archive."""
    ae = AE(ae_title="CART")
    for sop_class, syntax in {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in instances}:
        ae.add_requested_context(UID(sop_class), syntax)
    association = ae.associate("127.0.0.1", port, ae_title="ORTHANC")
    assert association.is_established
    assert [association.send_c_store(one).get("Status") for one in instances] == [0x0000] * len(instances)
    association.release()


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the archive listens."""
    end = time.monotonic() + DEADLINE
    while True:
        assert process.poll() is None
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            assert time.monotonic() < end, "dcmqrscp does not listen"
            time.sleep(0.05)
        else:
            return
