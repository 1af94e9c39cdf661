"""The whole path over TLS: Orthanc sends a study and gets the report, each shown the other's certificate."""

from pathlib import Path

import pytest

from model.tasks import View
from tests.binaries import free_port
from tests.doubles.certificates import authority
from tests.system.nodes import configured, running, wait_until
from tests.system.orthanc import running_orthanc
from tests.system.studies import part10, phantom_study
from worker.phantom_study import Shot

pytestmark = pytest.mark.timeout(600)


def test_orthanc_sends_a_study_and_gets_its_report_and_a_stranger_sends_nothing(tmp_path: Path) -> None:
    ours = authority(tmp_path / "ours")
    study = phantom_study(seed=5, shots=(Shot(view=View.A4C, num_frames=40),))
    study_uid = study[0].StudyInstanceUID
    pacs_port, stranger_port = free_port(), free_port()
    node = configured(tmp_path / "node", pacs_port=pacs_port, tls=ours.issue("node"))
    ways = {"node_ae": "ECHONODE", "node_port": node.port}
    with (
        running_orthanc(tmp_path / "pacs", dicom_port=pacs_port, tls=ours.issue("pacs"), **ways) as pacs,
        running_orthanc(
            tmp_path / "other", dicom_port=stranger_port, tls=authority(tmp_path / "theirs").issue("x"), **ways
        ) as stranger,
        running(node),
    ):
        refused = stranger.try_to_send("node", [stranger.upload(part10(one)) for one in study])
        wait_until(lambda: node.events("tls_refused") or None, "the stranger is refused", node)
        held = node.study(study_uid)
        answer = pacs.send("node", [pacs.upload(part10(one)) for one in study])
        kept = node.wait_for(study_uid)
        reports = pacs.find(StudyInstanceUID=study_uid, Modality="SR")

    assert refused >= 400
    assert held is None
    assert answer["FailedInstancesCount"] == 0
    assert [one["state"] for one in kept["deliveries"]] == ["delivered"]
    assert len(reports) == 1
