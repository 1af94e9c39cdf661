"""Storage commitment with a real Orthanc, both ways: it asks the node, and the node asks it."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from dicom_node.clock import utc_now
from dicom_node.identity import UID, result_uid
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.ledger.studies import study_id_of
from dicom_node.store import InstanceStore
from model.tasks import View
from tests.binaries import free_port
from tests.doubles.analyst import ENSEMBLE, Analyst
from tests.node.test_delivery import make_report
from tests.system.nodes import Node, configured, running, wait_until
from tests.system.orthanc import Orthanc, running_orthanc
from tests.system.studies import part10, phantom_study
from worker.phantom_study import Shot

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def study() -> list[Dataset]:
    """A study of two loops."""
    return phantom_study(seed=3, shots=(Shot(view=View.A4C, num_frames=2), Shot(view=View.PLAX, num_frames=2)))


@contextmanager
def node_and_pacs(folder: Path, *, in_node: str = "", in_peer: str = "") -> Iterator[tuple[Node, Orthanc]]:
    """Run a node without a worker, with these lines in its configuration, and an Orthanc that knows it."""
    pacs_port = free_port()
    node = configured(
        folder / "node", pacs_port=pacs_port, quiet=600.0, broker_url=f"redis://127.0.0.1:{free_port()}/0"
    )
    text = node.config.read_text().replace("[node]\n", f"[node]\n{in_node}\n")
    node.config.write_text(text.replace("receives_reports = true\n", f"receives_reports = true\n{in_peer}\n"))
    with (
        running_orthanc(folder / "pacs", node_ae="ECHONODE", node_port=node.port, dicom_port=pacs_port) as pacs,
        running(node),
    ):
        yield node, pacs


def send(pacs: Orthanc, study: list[Dataset]) -> list[str]:
    """Let Orthanc send a study to the node; return its own ids of the instances."""
    stored = [pacs.upload(part10(one)) for one in study]
    assert pacs.send("node", stored)["FailedInstancesCount"] == 0
    return stored


def verdict(node: Node, pacs: Orthanc, transaction: str) -> dict[str, Any]:
    """Return what Orthanc has heard of a transaction."""

    def heard() -> dict[str, Any] | None:
        said: dict[str, Any] = pacs.get(f"/storage-commitment/{transaction}")
        return None if said["Status"] == "Pending" else said

    return wait_until(heard, "Orthanc hears of its transaction", node)


def test_orthanc_asks_the_node_and_hears_what_it_keeps(tmp_path: Path, study: list[Dataset]) -> None:
    """All of it, and then of an instance too that was never sent."""
    never_sent = {"SOPClassUID": str(study[0].SOPClassUID), "SOPInstanceUID": str(generate_uid())}
    known = [{"SOPClassUID": str(one.SOPClassUID), "SOPInstanceUID": str(one.SOPInstanceUID)} for one in study]
    with node_and_pacs(tmp_path, in_node="storage_commitment = true") as (node, pacs):
        stored = send(pacs, study)
        whole = verdict(node, pacs, pacs.ask_to_commit("node", Resources=stored))
        part = verdict(node, pacs, pacs.ask_to_commit("node", DicomInstances=[*known, never_sent]))
        kept = node.wait_for(study[0].StudyInstanceUID, "analysing")  # its list is whole: no need for 600 s

    assert (whole["Status"], len(whole["Success"]), whole["Failures"]) == ("Success", 2, [])
    assert (part["Status"], len(part["Success"])) == ("Failure", 2)
    (failure,) = part["Failures"]
    assert failure["SOPInstanceUID"] == never_sent["SOPInstanceUID"]
    assert failure["FailureReason"] == 0x0112
    assert [one["detail"] for one in kept["history"] if one["event"] == "analysing"] == ["its list is whole"]


def test_orthanc_commits_to_a_report_of_the_node(tmp_path: Path, study: list[Dataset]) -> None:
    """It reports on an association of its own, after it has looked."""
    study_uid = UID(study[0].StudyInstanceUID)
    report_uid = result_uid(study_uid, 1, ENSEMBLE, "sr")
    with node_and_pacs(tmp_path, in_peer="storage_commitment = true") as (node, pacs):
        send(pacs, study)
        sessions = open_ledger(node.database_url)
        InstanceStore(node.folder / "var", min_free_bytes=0).keep_report(report_uid, report_of(study[0], report_uid))
        analyst = Analyst(sessions, utc_now)
        study_id = study_id_of(sessions, study_uid)
        with sessions.begin() as session:
            session.connection().exec_driver_sql("UPDATE study SET state = 'analysing'")
        analyst.report(study_id, ["pacs"])
        kept = wait_until(lambda: committed(node, study_uid), "Orthanc commits", node)
        close_ledger(sessions)

    assert kept["state"] == "delivered"
    assert [one["detail"] for one in kept["history"] if one["event"] == "report_committed"] == [f"pacs: {report_uid}"]
    assert node.events("commitment_not_asked_for") == []


def committed(node: Node, study_uid: UID) -> Any:
    """Return the study once its report is committed to."""
    kept = node.study(study_uid)
    assert kept is not None
    return kept if kept["deliveries"] and kept["deliveries"][0]["commitment"] == "committed" else None


def report_of(instance: Dataset, report_uid: UID) -> bytes:
    """Return a report of the study of an instance."""
    report = dcmread(BytesIO(make_report(report_uid, "one")[0]))
    report.PatientID = instance.PatientID
    report.StudyInstanceUID = instance.StudyInstanceUID
    report.SeriesInstanceUID = "1.2.826.0.1.7"
    buffer = BytesIO()
    report.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
