"""The web side, over a real socket."""

import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from dicom_node import completion
from dicom_node.acceptor import listen
from dicom_node.broker import EmbeddedBroker
from dicom_node.identity import UID
from dicom_node.ledger import reports
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.reports import WrittenReport
from dicom_node.settings import Settings, settings_from
from dicom_node.store import InstanceStore
from dicom_node.web.app import make_app
from dicom_node.web.server import WebServer
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock

Serve = Callable[..., httpx.Client]


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    """SQLite alone: what the ledger shows has its own tests on each engine."""
    return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A running broker."""
    broker = EmbeddedBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def door() -> Iterator[socket.socket]:
    """A socket that listens where the acceptors would."""
    with listen("127.0.0.1", 0) as listening:
        yield listening


@pytest.fixture
def serve(
    sessions: Sessions, store: InstanceStore, tmp_path: Path, broker: EmbeddedBroker, door: socket.socket
) -> Iterator[Serve]:
    """Start the page with these settings and return a client of it."""
    running: list[tuple[WebServer, httpx.Client]] = []

    def start(*, token: str = "", min_free_bytes: int = 0, broker_url: str = "") -> httpx.Client:
        settings = _settings(tmp_path, token, min_free_bytes, broker_url or broker.url)
        listening = listen("127.0.0.1", 0)
        server = WebServer(make_app(settings, sessions, store, door.getsockname()[1]), listening)
        client = httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=20)
        server.start()
        running.append((server, client))
        return client

    yield start
    for server, client in running:
        client.close()
        server.stop()


def _settings(tmp_path: Path, token: str, min_free_bytes: int, broker_url: str) -> Settings:
    return settings_from(
        {
            "node": {"data_dir": str(tmp_path / "data"), "min_free_bytes": min_free_bytes},
            "broker": {"url": broker_url},
            "web": {"token": token},
        }
    )


def test_a_node_in_order_is_healthy(serve: Serve) -> None:
    answer = serve().get("/healthz")

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "wrong": []}


def test_health_names_what_is_wrong(serve: Serve, door: socket.socket) -> None:
    client = serve(min_free_bytes=10**18, broker_url="redis://127.0.0.1:1/0")
    door.close()
    answer = client.get("/healthz")

    assert answer.status_code == 503
    wrong = answer.json()["wrong"]
    assert len(wrong) == 3
    assert any("min_free_bytes" in one for one in wrong)
    assert any("broker" in one for one in wrong)
    assert any("associations" in one for one in wrong)


def test_a_ledger_that_cannot_be_written_is_wrong(serve: Serve, sessions: Sessions) -> None:
    client = serve()
    with sessions() as session:
        session.connection().exec_driver_sql("ALTER TABLE study RENAME TO gone")
        session.commit()
    answer = client.get("/healthz")

    assert answer.status_code == 503
    assert "ledger" in answer.json()["wrong"][0]


def test_the_interface_gives_the_json_of_the_command_line(
    serve: Serve, arrivals: Arrivals, analyst: Analyst, clock: ManualClock
) -> None:
    arrivals.send()
    arrivals.send(UID("1.2.826.0.1.77"))
    client = serve()
    listed = client.get("/api/studies").json()
    one = client.get(f"/api/studies/{STUDY}").json()

    assert [study["study_instance_uid"] for study in listed] == ["1.2.826.0.1.77", STUDY]
    assert one["state"] == "receiving"
    assert (one["instances"], one["loops"]) == (1, 1)
    assert one["received_at"].endswith("Z")


def test_studies_are_asked_for_by_state(serve: Serve, arrivals: Arrivals) -> None:
    arrivals.send()
    client = serve()

    assert len(client.get("/api/studies?state=receiving").json()) == 1
    assert client.get("/api/studies?state=failed").json() == []
    assert client.get("/api/studies?state=nonsense").status_code == 422


@pytest.mark.parametrize("uid", ["1.2.3", "no-uid", "..%2f..%2fetc"])
def test_a_study_that_is_not_there_is_not_found(serve: Serve, uid: str) -> None:
    assert serve().get(f"/api/studies/{uid}").status_code == 404


def test_metrics_count_studies_and_deliveries_by_state(serve: Serve, arrivals: Arrivals) -> None:
    arrivals.send()
    text = serve().get("/metrics").text

    assert 'echo_node_studies{state="receiving"} 1.0' in text
    assert 'echo_node_studies{state="failed"} 0.0' in text
    assert 'echo_node_deliveries{state="dead"} 0.0' in text
    assert "echo_node_disk_free_bytes " in text


def test_the_page_lists_studies(serve: Serve, arrivals: Arrivals) -> None:
    arrivals.send()
    answer = serve().get("/")

    assert answer.headers["content-type"].startswith("text/html")
    assert STUDY in answer.text
    assert "receiving" in answer.text


def report(
    findings: dict[str, Any], sessions: Sessions, arrivals: Arrivals, analyst: Analyst, clock: ManualClock
) -> None:
    """Let a study arrive, and its report be written with these findings."""
    study_id = arrivals.send()
    clock.pass_by(60)
    completion.tick(sessions, clock, timedelta(seconds=30))
    analyst.drain(study_id)
    job = analyst.begin(study_id)
    assert job is not None
    written = WrittenReport(sop_instance_uid="1.2.9", sop_class_uid="1.2", series_instance_uid="1.3", path="r.dcm")
    reports.finish_report(sessions, job, written, findings, [], clock)


def test_the_page_says_what_the_weights_are_worth_and_escapes_it(
    serve: Serve, sessions: Sessions, arrivals: Arrivals, analyst: Analyst, clock: ManualClock
) -> None:
    findings = {"ensemble": {"statement": "untrained weights: <b>numbers</b> have no meaning"}, "results": []}
    report(findings, sessions, arrivals, analyst, clock)
    text = serve().get("/").text

    assert "untrained weights: &lt;b&gt;numbers&lt;/b&gt; have no meaning" in text


def test_the_page_shows_what_the_cart_measured_beside_ours(
    serve: Serve, sessions: Sessions, arrivals: Arrivals, analyst: Analyst, clock: ManualClock
) -> None:
    value = {"task": "lvef", "value": 54.0, "unit": "%", "method": "biplane", "sop_instance_uid": "1.2.8"}
    report({"results": [], "cart": [value]}, sessions, arrivals, analyst, clock)
    client = serve()

    assert "cart: lvef 54 %, biplane" in client.get("/").text
    assert client.get(f"/api/studies/{STUDY}").json()["cart"] == [value]


@pytest.mark.parametrize("path", ["/", "/api/studies", "/api/studies/1.2.3", "/metrics", "/healthz"])
@pytest.mark.parametrize("header", ["", "Bearer wrong", "Bearer", "Basic c2VjcmV0", "Bearer secretsecret"])
def test_without_the_token_nothing_is_shown(serve: Serve, path: str, header: str) -> None:
    answer = serve(token="secret").get(path, headers={"Authorization": header} if header else {})

    assert answer.status_code == 401
    assert "bearer" in answer.headers["WWW-Authenticate"].lower()


def test_with_the_token_everything_is_shown(serve: Serve) -> None:
    client = serve(token="secret")
    client.headers["Authorization"] = "Bearer secret"

    assert client.get("/").status_code == 200
    assert client.get("/healthz").status_code == 200


def test_pages_are_kept_by_no_cache_and_run_no_script(serve: Serve) -> None:
    headers = serve().get("/").headers

    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
