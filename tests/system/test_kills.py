"""Every process of a node is killed while a study is on its way, at last the node itself; its next start goes on."""

import os
import signal
from pathlib import Path

import pytest
from pydicom.uid import ComprehensiveSRStorage

from model.tasks import View
from tests.doubles.pacs import DOCUMENTS, running_pacs
from tests.system.nodes import Node, configured, running, wait_until
from tests.system.studies import phantom_study
from worker.phantom_study import Shot

pytestmark = pytest.mark.timeout(600)


def pids(node: Node, *names: str) -> set[int]:
    """Return the process ids of the node's children of these names."""
    return {child["pid"] for child in node.state["children"] if child["name"] in names}


def test_a_node_whose_processes_are_killed_one_and_all_delivers_the_study_once(tmp_path: Path) -> None:
    study = phantom_study(seed=3, shots=(Shot(view=View.A4C, num_frames=40), Shot(view=View.PLAX, num_frames=40)))
    study_uid = study[0].StudyInstanceUID
    with running_pacs(classes=DOCUMENTS) as pacs:
        node = configured(tmp_path / "node", pacs_port=pacs.port, pacs_ae="PACS", extra="[worker]\nmax_batch = 1")
        with running(node, ends_with=-signal.SIGKILL) as serve:
            wait_until(lambda: node.events("ensemble_loaded") or None, "the worker is ready", node)
            statuses = node.send(study)
            wait_until(lambda: node.events("loop_analysed") or None, "a loop was analysed", node)
            killed = pids(node, "clock", "broker", "worker")
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(pids(node, "clock", "broker", "worker") - killed) == 3 or None, "all are back", node)
            serve.kill()
        left = node.study(study_uid)
        with running(node):
            kept = node.wait_for(study_uid)

    assert set(statuses) == {0x0000}
    assert left is not None
    assert left["state"] != "delivered"
    assert kept["loops_analysed"] == 2
    assert [one["state"] for one in kept["deliveries"]] == ["delivered"]
    assert pacs.classes.count(ComprehensiveSRStorage) == 1
