"""Node and worker with nothing in common but database, broker and object store, which is away while a study arrives."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from pydicom.uid import ComprehensiveSRStorage

from model.tasks import View
from tests.doubles.object_server import ObjectServer, running_objects
from tests.doubles.pacs import DOCUMENTS, Pacs, running_pacs
from tests.peers import running_postgres
from tests.system.nodes import Node, configured, running, running_redis, running_worker, wait_until
from tests.system.studies import phantom_study
from worker.phantom_study import Shot

pytestmark = pytest.mark.timeout(600)

SHOTS = (Shot(view=View.A4C, num_frames=40), Shot(view=View.PLAX, num_frames=40), Shot(view=View.PLAX, num_frames=1))


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """What runs."""

    pacs: Pacs
    node: Node
    objects: ObjectServer
    worker_dir: Path
    """The worker's own data_dir."""


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    """A node and a worker, each with a folder of its own."""
    with ExitStack() as stack:
        objects = stack.enter_context(running_objects(tmp_path / "s3"))
        pacs = stack.enter_context(running_pacs(classes=DOCUMENTS))
        section = "\n".join(["[objects]", *(f"{key} = {json.dumps(one)}" for key, one in objects.settings.items())])
        node = configured(
            tmp_path / "node",
            pacs_port=pacs.port,
            pacs_ae="PACS",
            database_url=stack.enter_context(running_postgres()).new_database(),
            broker_url=stack.enter_context(running_redis(tmp_path / "redis")),
            extra=section,
        )
        worker_dir = tmp_path / "elsewhere"
        elsewhere = tmp_path / "elsewhere.toml"
        own, other = (f"data_dir = {json.dumps(str(one))}" for one in (node.folder / "var", worker_dir))
        elsewhere.write_text(node.config.read_text().replace(own, other))
        stack.enter_context(running(node))
        stack.enter_context(running_worker(replace(node, config=elsewhere), "elsewhere"))
        wait_until(lambda: node.events("ensemble_loaded") or None, "the worker is ready", node)
        yield Hospital(pacs=pacs, node=node, objects=objects, worker_dir=worker_dir)


def test_a_study_that_arrives_while_the_object_store_is_away_is_delivered_once_it_is_back(hospital: Hospital) -> None:
    node = hospital.node
    study = phantom_study(seed=3, shots=SHOTS)
    study_uid = study[0].StudyInstanceUID

    hospital.objects.stop()
    statuses = node.send(study)
    wait_until(lambda: node.events("objects_away") or None, "the node notices", node)
    wait_until(lambda: (node.study(study_uid) or {}).get("state") == "analysing" or None, "it is complete", node)
    meanwhile = node.study(study_uid)
    hospital.objects.start()
    delivered = node.wait_for(study_uid)

    assert set(statuses) == {0x0000}
    assert meanwhile is not None
    assert meanwhile["loops_analysed"] == 0
    assert (delivered["loops_analysed"], delivered["revision"]) == (2, 1)
    assert {*hospital.pacs.classes} == {*DOCUMENTS}
    assert hospital.pacs.classes.count(ComprehensiveSRStorage) == 1
    assert len(node.events("objects_away")) == 1
    assert [one["level"] for one in node.events("objects_back")] == ["info"]


def test_each_machine_has_what_it_needs_and_the_page_shows_it(hospital: Hospital) -> None:
    node = hospital.node
    study = phantom_study(seed=4, shots=SHOTS)
    study_uid, loop_uid = study[0].StudyInstanceUID, study[0].SOPInstanceUID

    node.send(study)
    delivered = node.wait_for(study_uid)
    page = f"http://127.0.0.1:{node.state['web_port']}/studies/{study_uid}"
    shown = httpx.get(page, timeout=20).text  # first: the node has no preview yet
    thumbnail = httpx.get(f"{page}/loops/{loop_uid}/thumbnail.jpg", timeout=20)

    var, fetched = node.folder / "var", hospital.worker_dir / "fetched"
    report = delivered["reports"][0]
    assert len([*fetched.rglob("instances/*/*.dcm")]) == len([*var.glob("instances/*/*.dcm")]) == len(SHOTS)
    assert [*hospital.worker_dir.iterdir()] == [fetched]
    assert not (var / "fetched").exists()
    assert (var / report["path"]).exists()
    assert (thumbnail.status_code, thumbnail.content[:3]) == (200, b"\xff\xd8\xff")
    assert f"/loops/{loop_uid}/thumbnail.jpg" in shown
