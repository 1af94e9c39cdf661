"""The whole path, on real servers: a PACS sends a study, and the report of it arrives in the PACS."""

import io
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest
import redis
from pydicom import Dataset, dcmread

from dicom_node.dispatch import QUEUE
from model.tasks import View
from tests.binaries import free_port
from tests.peers import PostgresServer, running_postgres
from tests.system.nodes import (
    WITHOUT_PICTURES,
    Node,
    configured,
    running,
    running_redis,
    running_worker,
    wait_until,
)
from tests.system.orthanc import Orthanc, running_orthanc
from tests.system.studies import REAL_STUDY, part10, phantom_study, real_study
from tests.system.validators import assert_valid_report, referenced
from worker.phantom_study import Shot

pytestmark = pytest.mark.timeout(600)

COLOUR = "colour or tissue Doppler"
STILL = "still image, not a cine loop"
"""What the real files are, looked at with eyes; the rest are B-mode cine loops."""
REFUSED = {
    "hp_ped_I_000003.dcm": COLOUR,
    "toshiba_adult_I_000034.dcm": "M-mode",
    "toshiba_adult_I_000037.dcm": COLOUR,
    "toshiba_adult_I_000038.dcm": "spectral Doppler",
    "gdcm_US-PAL-8-10x-echo_rle.dcm": COLOUR,
    "acuson_colour_implicit.dcm": COLOUR,
    "philips_epiq_adult_echo_still.dcm": STILL,
    "acme_TEE_color-pl.dcm": STILL,
    "atl_hdi5000_cardiac_jpeg.dcm": STILL,
    "esaote_msk_ybr422_raw.dcm": STILL,
    "acuson_thyroid_ybrfull_rle.dcm": STILL,
    **{f"acuson_stress_I_0000{number:02}.dcm": "loop too short" for number in range(7, 19)},  # systole alone
    "sonosite_apical_ybr.dcm": "no usable scale",  # its header is of a larger image
    "medistim_2frame_jpegll.dcm": "loop too short",
    "philips_OB_palette_rle_2frame.dcm": "loop too short",
    "philips_OB_palette_examples.dcm": STILL,
    "ge_logiq_lymphnode_j2k_rct.dcm": STILL,
    "philips_gyn_palette_implicit.dcm": STILL,
    "ge_e95_A3C_colour_jpeg_derived.dcm": COLOUR,
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Orthanc]]:
    """A node as it is configured by default beside a PACS, for studies that nothing happens to."""
    pacs_port = free_port()
    node = configured(tmp_path_factory.mktemp("whole") / "node", pacs_port=pacs_port, quiet=5.0)
    with pacs_beside(node, pacs_port) as pacs, running(node):
        yield node, pacs


def pacs_beside(node: Node, port: int) -> AbstractContextManager[Orthanc]:
    """Run an Orthanc that knows the node."""
    return running_orthanc(node.folder / "pacs", node_ae="ECHONODE", node_port=node.port, dicom_port=port)


def reports_in(pacs: Orthanc, study_uid: str) -> list[Dataset]:
    """Return the reports of a study that the PACS holds."""
    found = pacs.find(StudyInstanceUID=study_uid, Modality="SR")
    return [dcmread(io.BytesIO(pacs.file(one))) for one in found]


def comments(report: Dataset) -> list[str]:
    """Return every text of the report."""
    own = [str(report.TextValue)] if "TextValue" in report else []
    return own + [text for item in report.get("ContentSequence", ()) for text in comments(item)]


def send_from(pacs: Orthanc, instances: list[Dataset]) -> None:
    """Let the PACS send instances with its own C-STORE."""
    stored = [pacs.upload(part10(one)) for one in instances]
    answer = pacs.send("node", stored)
    assert answer["FailedInstancesCount"] == 0, answer


def test_two_workers_share_a_study_on_postgresql_and_redis(tmp_path: Path, postgres: PostgresServer) -> None:
    study = phantom_study()
    pacs_port = free_port()
    with running_redis(tmp_path / "redis") as broker_url:
        node = configured(
            tmp_path / "node", pacs_port=pacs_port, database_url=postgres.new_database(), broker_url=broker_url,
            extra=f"[worker]\nmax_batch = 1\n{WITHOUT_PICTURES}",
        )  # fmt: skip
        with (
            pacs_beside(node, pacs_port) as pacs,
            running(node),
            running_worker(node, "one"),
            running_worker(node, "two"),
        ):
            wait_until(lambda: len(node.events("ensemble_loaded")) == 2 or None, "both workers are ready", node)
            send_from(pacs, study)
            node.wait_for(study[0].StudyInstanceUID)
            reports = reports_in(pacs, study[0].StudyInstanceUID)

    assert len(reports) == 1
    analysed = node.events("loop_analysed") + node.events("instance_not_analysed")
    assert sorted(one["instance"] for one in analysed) == sorted(one.SOPInstanceUID for one in study)
    assert len({one["worker"] for one in analysed}) == 2


def test_a_killed_worker_child_costs_no_study_and_no_second_report(tmp_path: Path) -> None:
    study = phantom_study(seed=3)
    pacs_port = free_port()
    node = configured(tmp_path / "node", pacs_port=pacs_port, extra=WITHOUT_PICTURES)
    with (
        running_orthanc(tmp_path / "pacs", node_ae="ECHONODE", node_port=node.port, dicom_port=pacs_port) as pacs,
        running(node),
    ):
        wait_until(lambda: node.events("ensemble_loaded") or None, "the worker is ready", node)
        send_from(pacs, study)
        wait_until(lambda: node.events("loop_analysed") or None, "a loop was analysed", node)
        os.kill(child_of_worker(node), signal.SIGKILL)
        kept = node.wait_for(study[0].StudyInstanceUID)
        reports = reports_in(pacs, study[0].StudyInstanceUID)

    assert len(reports) == 1
    assert kept["loops_analysed"] == 5
    assert [one["state"] for one in kept["deliveries"]] == ["delivered"]


def test_a_flushed_broker_costs_no_study_and_no_second_report(tmp_path: Path) -> None:
    study = phantom_study(seed=4)
    pacs_port = free_port()
    with running_redis(tmp_path / "redis") as broker_url:
        node = configured(tmp_path / "node", pacs_port=pacs_port, broker_url=broker_url, extra=WITHOUT_PICTURES)
        with (
            pacs_beside(node, pacs_port) as pacs,
            running(node),
        ):
            send_from(pacs, study)
            node.wait_for(study[0].StudyInstanceUID, "analysing")  # nobody works yet: every bell waits in the broker
            broker = redis.Redis.from_url(broker_url)
            for _ in range(2):  # the call for the complete study may come after the first
                wait_until(lambda: broker.llen(QUEUE) or None, "a call waits in the broker", node)
                broker.flushall()
            with running_worker(node, "late"):
                kept = node.wait_for(study[0].StudyInstanceUID)
                reports = reports_in(pacs, study[0].StudyInstanceUID)

    assert len(reports) == 1
    assert kept["loops_analysed"] == 5


def test_a_real_study_sent_by_orthanc_is_reported_to_orthanc_with_a_reason_for_each_file_that_is_no_loop(
    whole: tuple[Node, Orthanc], shared_data: Path
) -> None:
    node, pacs = whole
    study = real_study(shared_data)
    send_from(pacs, list(study.values()))
    kept = node.wait_for(REAL_STUDY)
    (report,) = reports_in(pacs, REAL_STUDY)

    assert kept["instances"] == len(study)
    assert kept["loops_analysed"] == len(study) - len(REFUSED)
    said = [text for text in comments(report) if text.startswith("Not analysed:")]
    assert len(said) == len(REFUSED)
    for number, name in enumerate(study, start=1):
        if name in REFUSED:
            (line,) = [text for text in said if f"instance {number}," in text or f"instance {number}:" in text]
            assert REFUSED[name] in line
    assert_valid_report(report)


def test_all_that_a_report_refers_to_is_in_the_pacs_and_opens_no_revision_when_it_comes_back(
    whole: tuple[Node, Orthanc],
) -> None:
    node, pacs = whole
    study = phantom_study(seed=3, shots=(Shot(view=View.A4C, num_frames=40), Shot(view=View.PLAX, num_frames=40)))
    study_uid = study[0].StudyInstanceUID
    send_from(pacs, study)
    kept = node.wait_for(study_uid)
    (report,) = reports_in(pacs, study_uid)
    held = pacs.find(StudyInstanceUID=study_uid)
    everything = {dcmread(io.BytesIO(pacs.file(one))).SOPInstanceUID: one for one in held}
    answer = pacs.send("node", list(everything.values()))
    after = node.wait_for(study_uid)

    pictures = {one["sop_instance_uid"] for one in kept["reports"][0]["pictures"]}
    assert len(pictures) == 3
    assert pictures | {one.SOPInstanceUID for one in study} <= referenced(report) <= everything.keys()
    assert answer["FailedInstancesCount"] == 0
    assert (after["state"], after["revision"], after["instances"]) == ("delivered", 1, len(study))


def test_a_late_instance_makes_a_second_report_that_names_its_predecessor(whole: tuple[Node, Orthanc]) -> None:
    node, pacs = whole
    *early, late = phantom_study(seed=5)
    send_from(pacs, early)
    first = node.wait_for(late.StudyInstanceUID)
    send_from(pacs, [late])
    wait_until(lambda: len(reports_in(pacs, late.StudyInstanceUID)) == 2 or None, "a second report", node)
    second = node.wait_for(late.StudyInstanceUID)
    reports = {str(one.SOPInstanceUID): one for one in reports_in(pacs, late.StudyInstanceUID)}

    assert [one["supersedes"] for one in second["reports"]] == [None, first["reports"][0]["sop_instance_uid"]]
    newest = reports[second["reports"][1]["sop_instance_uid"]]
    (predecessor,) = newest.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert predecessor.ReferencedSOPInstanceUID == first["reports"][0]["sop_instance_uid"]
    attempts = [one["instance"] for one in node.events("loop_analysed")]
    assert len(attempts) == len(set(attempts))  # only what is new was looked at


def child_of_worker(node: Node) -> int:
    """Return the process that holds the networks."""
    (worker,) = [one["pid"] for one in node.state["children"] if one["name"] == "worker"]
    (child,) = psutil.Process(worker).children()
    return int(child.pid)
