"""What the running node counts is what was done to it, exactly, whichever of its processes did it and died since."""

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from dicom_node.dispatch import Bell
from dicom_node.metrics.shared import folder_of
from model.tasks import View
from tests.binaries import free_port
from tests.doubles.pacs import DOCUMENTS, running_pacs
from tests.doubles.wire_peer import WirePeer
from tests.scrape import Scrape, scrape
from tests.system.nodes import (
    WITHOUT_PICTURES,
    Node,
    configured,
    running,
    running_redis,
    running_worker,
    wait_until,
)
from tests.system.studies import phantom_study
from worker.phantom_study import Shot

pytestmark = pytest.mark.timeout(300)

SHOTS = (Shot(view=View.A4C, num_frames=24), Shot(view=View.A4C, num_frames=1))
PASSAGE = "echo_node_last_image_to_delivered_seconds"


def scraped(node: Node) -> Scrape:
    """Return what the node's page says now."""
    return scrape(node.state["web_port"])


def pids(node: Node, *names: str) -> list[int]:
    """Return the process ids of the node's children of these names."""
    return [child["pid"] for child in node.state["children"] if child["name"] in names]


def counts_of(node: Node) -> Path:
    """Return the folder that the node's processes count in."""
    return folder_of(str(node.folder / "var"))


def data_set_bytes(node: Node, uid: str) -> int:
    """Return the length of all data sets of a study as they came: of the kept files without their header."""
    files = (node.folder / "var" / "instances" / uid).glob("*.dcm")
    return sum(len(one.read_bytes()) - header_bytes(one.read_bytes()) for one in files)


def header_bytes(part10: bytes) -> int:
    """Return the length of preamble and group 2, by its own group length (PS3.10 7.1)."""
    return 132 + 12 + int.from_bytes(part10[140:144], "little")


def is_rejected(node: Node, called: str) -> bool:
    """Return whether the node rejects an association for this AE title."""
    with WirePeer(node.port, called=called, calling="SCANNER") as peer:  # pynetdicom would leave its socket open
        return peer.associate().rejection is not None


def test_a_study_on_its_way_is_counted_exactly_and_no_death_of_a_process_changes_that(tmp_path: Path) -> None:
    study = phantom_study(seed=3, shots=SHOTS)
    uid = study[0].StudyInstanceUID
    with running_pacs(classes=DOCUMENTS) as pacs:
        node = configured(tmp_path / "node", pacs_port=pacs.port, pacs_ae="PACS", quiet=1.0, extra=WITHOUT_PICTURES)
        with running(node):
            before = scraped(node)  # `running` has asked whether it listens
            released = before("echo_node_associations_ended_total", end="released")
            node.send(study)
            node.wait_for(uid)
            node.send(study[:1])
            assert is_rejected(node, "ANOTHER")
            num_bytes = data_set_bytes(node, uid)
            first = settled(node, released + 2)
            sizes = {one.stat().st_size for one in counts_of(node).glob("*.db")}

            wait_until(lambda: len(node.events("acceptor_started")) == 2 or None, "both acceptors are here", node)
            killed = pids(node, "acceptor", "clock")
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(node.events("acceptor_started")) == 4 or None, "others are here", node)
            node.send(phantom_study(seed=4, shots=SHOTS[1:]))
            last = settled(node, released + 3)

    assert set(before.of("echo_node_received_instances_total").values()) == {0.0}
    assert first("echo_node_received_instances_total", outcome="kept") == len(study)
    assert first("echo_node_received_instances_total", outcome="identical") == 1
    assert first("echo_node_received_bytes_total", outcome="kept") == num_bytes > 0
    assert first("echo_node_store_seconds_count") == len(study) + 1
    assert set(first.of("echo_node_refused_instances_total").values()) == {0.0}
    accepted = before("echo_node_associations_total", outcome="accepted")
    assert first("echo_node_associations_total", outcome="accepted") == accepted + 2
    assert first("echo_node_associations_total", outcome="rejected_called_ae") == 1
    assert first(f"{PASSAGE}_count") == 1
    assert first(f"{PASSAGE}_sum") >= 1.0  # the quiet period
    assert first(f"{PASSAGE}_sum") >= (
        first("echo_node_complete_to_report_seconds_sum") + first("echo_node_report_to_delivered_seconds_sum")
    )
    assert first("echo_node_delivery_attempts_total", peer="pacs", outcome="delivered") == 1
    assert first("echo_node_loops_analysed_total") == 1
    assert first("echo_node_instances_not_analysed_total", reason="still") == 1
    assert first("echo_node_loop_seconds_count", step="network") == 1
    assert sum(first.of("echo_node_reports_total").values()) == 1
    assert first.of("echo_node_worker_info") == {"cpu phantom 0.5.0": 1.0}
    assert first("echo_node_studies", state="delivered") == 1
    assert (first("echo_node_ledger_up"), first("echo_node_broker_up")) == (1, 1)

    assert len(sizes) == 1  # all that a process counts has room in what it reserved
    assert last("echo_node_received_instances_total", outcome="kept") == len(study) + 1
    assert last("echo_node_received_instances_total", outcome="identical") == 1
    assert last("echo_node_received_bytes_total", outcome="kept") > num_bytes
    assert last("echo_node_associations_total", outcome="rejected_called_ae") == 1
    assert last(f"{PASSAGE}_count") == 1
    assert last("echo_node_delivery_attempts_total", peer="pacs", outcome="delivered") == 1
    assert last("echo_node_loops_analysed_total") == 1


def settled(node: Node, num_released: float) -> Scrape:
    """Return a scrape in which so many associations have ended well: that is counted after the peer knows it."""

    def found() -> Scrape | None:
        try:
            one = scraped(node)
        except httpx.TransportError:
            return None
        return one if one("echo_node_associations_ended_total", end="released") == num_released else None

    return wait_until(found, f"{num_released} associations released", node)


def test_a_worker_elsewhere_serves_what_its_processes_count_also_those_that_died(tmp_path: Path) -> None:
    port = free_port()
    with running_redis(tmp_path / "redis") as broker_url:
        more = f"[worker]\nmetrics_port = {port}"
        node = configured(tmp_path / "node", pacs_port=free_port(), broker_url=broker_url, extra=more)
        bell = Bell(broker_url)
        with running_worker(node, "elsewhere") as worker:
            wait_until(lambda: held(port, 1), "the worker holds its networks", node)
            with closing(sqlite3.connect(node.folder / "var" / "ledger.sqlite")) as ledger:
                ledger.execute("ALTER TABLE instance RENAME TO gone")
            bell.ring(1)
            wait_until(lambda: interrupted(port) == 1 or None, "it was rung for, and found no ledger", node)
            (child,) = [one for one in psutil.Process(worker.pid).children() if is_celery(one)]
            child.kill()
            wait_until(lambda: held(port, 0), "its networks are gone", node)
            wait_until(lambda: held(port, 1), "and are back", node)
            bell.ring(1)
            wait_until(lambda: interrupted(port) == 2 or None, "it goes on with its counts", node)
        bell.close()


def held(port: int, number: int) -> bool | None:
    """Return whether so many ensembles are held by the processes of a worker."""
    try:
        return len(scrape(port).of("echo_node_worker_info")) == number or None
    except httpx.TransportError:
        return None


def interrupted(port: int) -> float:
    """Return how often the worker found no ledger."""
    return scrape(port)("echo_node_analysis_interrupted_total", reason="ledger")


def is_celery(process: psutil.Process) -> bool:
    """Return whether it is a process of Celery's pool."""
    return any("celery" in word for word in process.cmdline())
