"""The database is stopped, hangs or is locked while a real node uses it: senders hear 0xA700, and all of it goes on."""

import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import httpx
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID as DicomUID

from dicom_node.broker import EmbeddedBroker
from dicom_node.clock import utc_now
from dicom_node.identity import UID, result_uid
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.ledger.studies import study_id_of
from dicom_node.store import InstanceStore
from tests.doubles.analyst import ENSEMBLE, Analyst
from tests.doubles.datasets import STUDY, loop
from tests.doubles.pacs import running_pacs
from tests.doubles.wire_peer import EXPLICIT_LITTLE
from tests.node.test_delivery import make_report
from tests.peers import PostgresServer, running_postgres
from tests.system.nodes import Node, configured, running, wait_until

Outage = Callable[[], AbstractContextManager[None]]


@contextmanager
def stopped(server: PostgresServer) -> Iterator[None]:
    """As after a crash of the server, or a restart in a hurry."""
    server.stop(signal.SIGQUIT)
    yield
    server.start()


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """By a process that is not the node."""
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@pytest.fixture(params=["stopped", "hung", "locked"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Outage]]:
    """The URL of a ledger (empty: the node's own SQLite), and what befalls it."""
    if request.param == "locked":
        yield "", lambda: locked(tmp_path / "node" / "var" / "ledger.sqlite")
        return
    with running_postgres() as server:
        yield server.new_database(), server.hung if request.param == "hung" else lambda: stopped(server)


def instance(number: int) -> Dataset:
    """Return one instance of the study."""
    dataset = loop(f"1.2.3.{number}")
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = DicomUID(EXPLICIT_LITTLE)
    return dataset


def wrong(node: Node) -> str:
    """Return what the node says is wrong with it."""
    answer = httpx.get(f"http://127.0.0.1:{node.state['web_port']}/healthz", timeout=60)
    return " ".join(answer.json()["wrong"])


def write_report(node: Node) -> bytes:
    """Do a worker's work on the study and return the data set of its report."""
    sessions = open_ledger(node.database_url)
    analyst, store = Analyst(sessions, utc_now), InstanceStore(node.folder / "var", min_free_bytes=0)
    sop_uid = result_uid(UID(STUDY), 1, ENSEMBLE, "sr")
    part10, dataset = make_report(sop_uid, "one")
    store.keep_report(sop_uid, part10)
    analyst.report(study_id_of(sessions, UID(STUDY)), ["pacs"])
    close_ledger(sessions)
    return dataset


def test_a_database_that_is_away_for_a_while_costs_no_instance_and_no_report(
    tmp_path: Path, database: tuple[str, Outage]
) -> None:
    url, outage = database
    broker = EmbeddedBroker(tmp_path / "broker")
    broker.start()
    with running_pacs() as pacs:
        node = configured(
            tmp_path / "node", pacs_port=pacs.port, pacs_ae="PACS", database_url=url, broker_url=broker.url
        )
        with running(node):
            wait_until(lambda: wrong(node) == "" or None, "nothing wrong", node)
            before = node.send([instance(1)])
            with outage():
                meanwhile = node.send([instance(2)])
                said = wrong(node)
            wait_until(lambda: True if node.send([instance(2)]) == [0x0000] else None, "an answer of Success", node)
            node.wait_for(STUDY, "analysing")
            report = write_report(node)
            kept = node.wait_for(STUDY)
            deaths = node.events("child_died")
    broker.stop()

    assert (before, meanwhile) == ([0x0000], [0xA700])
    assert "the ledger cannot be written" in said
    assert kept["instances"] == 2
    assert pacs.stored == [report]
    assert deaths == []
