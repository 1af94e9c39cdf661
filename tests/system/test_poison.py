"""Loops that cost their worker: the rest of their study, and the next study, go on."""

from pathlib import Path

import pytest

from model.tasks import View
from tests.doubles.pacs import DOCUMENTS, running_pacs
from tests.doubles.poisoned import FAILS, HANGS, KILLS
from tests.system.nodes import WITHOUT_PICTURES, configured, running, running_redis, running_worker
from tests.system.studies import phantom_study
from worker.phantom_study import Shot

pytestmark = pytest.mark.timeout(600)


def test_a_loop_that_hangs_or_kills_its_reader_is_given_up_and_the_rest_goes_on(tmp_path: Path) -> None:
    poisons = [Shot(view=View.A4C, num_frames=number) for number in (HANGS, KILLS, FAILS)]
    study = phantom_study(seed=5, shots=(*poisons, Shot(view=View.A4C, num_frames=40)))
    after = phantom_study(seed=6, shots=(Shot(view=View.A4C, num_frames=40),))
    with running_redis(tmp_path / "redis") as broker_url, running_pacs(classes=DOCUMENTS) as pacs:
        extra = f"[worker]\nloop_seconds = 12\n{WITHOUT_PICTURES}"
        node = configured(tmp_path / "node", pacs_port=pacs.port, broker_url=broker_url, extra=extra)
        with running(node), running_worker(node, "one", app="tests.doubles.poisoned"):
            node.send(study)
            reported = node.wait_for(study[0].StudyInstanceUID)
            node.send(after)
            next_one = node.wait_for(after[0].StudyInstanceUID)

    given_up = {one["sop_instance_uid"]: one["reason"] for one in reported["not_analysed"]}
    assert set(given_up) == {one.SOPInstanceUID for one in study[: len(poisons)]}
    assert all("failed 3 times" in reason for reason in given_up.values())
    assert reported["loops_analysed"] == next_one["loops_analysed"] == 1
    assert len(reported["reports"]) == 1
    assert "Timeout" in node.log  # what the watchdog writes when it ends a process
