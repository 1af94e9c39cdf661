"""A PACS, a node, two workers, database and broker on machines with addresses of their own; a cable is pulled."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.ledger.schema import Instance, InstanceState
from model.tasks import View
from tests.binaries import free_port
from tests.peers import running_postgres
from tests.system.machines import OUR_ADDRESS, Machine, network
from tests.system.nodes import Node, configured, running, running_redis, running_worker, wait_until
from tests.system.orthanc import Orthanc, running_orthanc
from tests.system.studies import phantom_study
from worker.phantom_study import Shot

pytestmark = pytest.mark.timeout(600)

LOOPS = tuple(Shot(view=view, num_frames=40) for view in (View.A4C, View.PLAX) * 5)
SEEDS = count(4)


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """What runs."""

    pacs: Orthanc
    node: Node
    one: Machine
    """Where the worker is whose cable is pulled."""
    child: int
    """Process id of what analyses there."""

    def holds(self) -> list[str]:
        """Return the loops that this worker has the lease of."""
        sessions = open_ledger(self.node.database_url)
        try:
            with sessions() as session:
                rows = session.execute(
                    select(Instance.sop_instance_uid, Instance.lease_token).where(
                        Instance.state == InstanceState.LEASED
                    )
                )
                return [uid for uid, token in rows if f":{self.child}/" in token]
        finally:
            close_ledger(sessions)

    def analysed(self, study: list[str]) -> list[tuple[str, bool]]:
        """Return the answers to these loops in the log: whose, and whether the ledger took it."""
        return [
            ("one" if line["worker"].endswith(f":{self.child}") else "two", line["kept"])
            for line in self.node.events("loop_analysed")
            if line["instance"] in study
        ]


STRANGERS_STAY_OUT = f"""
[[peers]]
name = "scanner"
ae_title = "SCANNER"
addresses = ["{OUR_ADDRESS}"]
[[peers]]
name = "probe"
ae_title = "PROBE"
addresses = ["{OUR_ADDRESS}"]
[worker]
max_batch = 1
"""


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    """Five machines on a switch; what is read and written in common is a folder that node and workers have mounted."""
    with ExitStack() as stack:
        machines = stack.enter_context(network("pacs", "node", "one", "two", "hub"))
        database_url = stack.enter_context(running_postgres(machines["hub"])).new_database()
        broker_url = stack.enter_context(running_redis(tmp_path / "redis", machine=machines["hub"]))
        pacs_port = free_port()
        node = configured(
            tmp_path / "node",
            pacs_port=pacs_port,
            pacs_host=machines["pacs"].address,
            database_url=database_url,
            broker_url=broker_url,
            extra=STRANGERS_STAY_OUT,
            machine=machines["node"],
        )
        pacs = stack.enter_context(
            running_orthanc(
                tmp_path / "pacs",
                node_ae="ECHONODE",
                node_port=node.port,
                node_host=node.host,
                dicom_port=pacs_port,
                machine=machines["pacs"],
            )
        )
        stack.enter_context(running(node))
        worker = stack.enter_context(running_worker(node, "one", machine=machines["one"]))
        stack.enter_context(running_worker(node, "two", machine=machines["two"]))
        wait_until(lambda: len(node.events("ensemble_loaded")) == 2 or None, "both workers are ready", node)
        (child,) = psutil.Process(worker.pid).children()
        yield Hospital(pacs=pacs, node=node, one=machines["one"], child=child.pid)


def test_a_study_is_delivered_once_though_a_worker_loses_its_link_in_the_middle(hospital: Hospital) -> None:
    """The other takes its loop over; when the link is back, its late answer changes nothing, and it works on."""
    node = hospital.node
    study = phantom_study(seed=3, shots=LOOPS)
    study_uid, loops = study[0].StudyInstanceUID, [one.SOPInstanceUID for one in study]

    assert set(node.send(study)) == {0x0000}
    lost = wait_until(lambda: _cut_off(hospital), "the link is cut while the worker has a loop", node)
    kept = node.wait_for(study_uid)
    without_it = hospital.analysed(loops)
    hospital.one.mend()
    wait_until(lambda: _works_again(hospital), "the worker analyses loops of other studies", node)

    assert len(lost) == 1
    assert kept["loops_analysed"] == len(LOOPS)
    assert [is_kept for _, is_kept in without_it] == [True] * len(LOOPS)
    assert ("one", False) in hospital.analysed(lost)
    assert [one["state"] for one in kept["deliveries"]] == ["delivered"]
    assert len(hospital.pacs.find(StudyInstanceUID=study_uid, Modality="SR")) == 1
    assert node.study(study_uid) == kept


def _works_again(hospital: Hospital) -> bool | None:
    """Send another study, and see whether the worker had part in it."""
    study = phantom_study(seed=next(SEEDS), shots=LOOPS)
    hospital.node.send(study)
    hospital.node.wait_for(study[0].StudyInstanceUID)
    return "one" in dict(hospital.analysed([one.SOPInstanceUID for one in study])) or None


def _cut_off(hospital: Hospital) -> list[str] | None:
    """Cut the link; None, and whole again, if the worker had no loop at that moment."""
    if not hospital.holds():
        return None
    hospital.one.cut()
    lost = hospital.holds()
    if not lost:
        hospital.one.mend()
    return lost or None
