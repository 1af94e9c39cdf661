"""The web side, over a real socket."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dicom_node import completion
from dicom_node.acceptor import listen
from dicom_node.broker import EmbeddedBroker
from dicom_node.clock import utc_now
from dicom_node.dispatch import Bell
from dicom_node.identity import UID
from dicom_node.ledger import reports
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.reports import WrittenReport
from dicom_node.settings import Study as StudySection
from dicom_node.store import InstanceStore
from dicom_node.ticker import Ticker
from dicom_node.web.health import LOST, Health, Pulse
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock
from tests.node.sites import TOKEN, Serve, Site, page_settings, serving_page
from tests.patience import wait_until


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
    """Start the page with these settings."""
    with ExitStack() as running:

        def start(*, min_free_bytes: int = 0, broker_url: str = "", pulse: Pulse | None = None, **web: Any) -> Site:
            settings = page_settings(tmp_path / "data", broker_url or broker.url, min_free_bytes=min_free_bytes, **web)
            site = serving_page(settings, sessions, store, door.getsockname()[1], pulse=pulse)
            return running.enter_context(site)

        yield start


def test_a_node_in_order_is_healthy(serve: Serve) -> None:
    answer = serve().client.get("/healthz")

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "wrong": []}


def test_health_names_what_is_wrong(serve: Serve, door: socket.socket) -> None:
    client = serve(min_free_bytes=10**18, broker_url="redis://127.0.0.1:1/0").client
    door.close()
    answer = client.get("/healthz")

    assert answer.status_code == 503
    wrong = answer.json()["wrong"]
    assert len(wrong) == 3
    assert any("min_free_bytes" in one for one in wrong)
    assert any("broker" in one for one in wrong)
    assert any("associations" in one for one in wrong)


def test_a_ledger_that_cannot_be_written_is_wrong(serve: Serve, sessions: Sessions) -> None:
    client = serve().client
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
    client = serve().client
    listed = client.get("/api/studies").json()
    one = client.get(f"/api/studies/{STUDY}").json()

    assert [study["study_instance_uid"] for study in listed] == ["1.2.826.0.1.77", STUDY]
    assert one["state"] == "receiving"
    assert (one["instances"], one["loops"]) == (1, 1)
    assert one["received_at"].endswith("Z")


def test_studies_are_asked_for_by_state(serve: Serve, arrivals: Arrivals) -> None:
    arrivals.send()
    client = serve().client

    assert len(client.get("/api/studies?state=receiving").json()) == 1
    assert client.get("/api/studies?state=failed").json() == []
    assert client.get("/api/studies?state=nonsense").status_code == 422


@pytest.mark.parametrize("uid", ["1.2.3", "no-uid", "..%2f..%2fetc"])
def test_a_study_that_is_not_there_is_not_found(serve: Serve, uid: str) -> None:
    assert serve().client.get(f"/api/studies/{uid}").status_code == 404


def test_metrics_count_studies_and_deliveries_by_state(serve: Serve, arrivals: Arrivals) -> None:
    arrivals.send()
    text = serve().client.get("/metrics").text

    assert 'echo_node_studies{state="receiving"} 1.0' in text
    assert 'echo_node_studies{state="failed"} 0.0' in text
    assert 'echo_node_deliveries{state="dead"} 0.0' in text
    assert "echo_node_disk_free_bytes " in text


def test_the_page_lists_studies(serve: Serve, arrivals: Arrivals) -> None:
    arrivals.send()
    answer = serve().client.get("/")

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
    text = serve().client.get("/").text

    assert "untrained weights: &lt;b&gt;numbers&lt;/b&gt; have no meaning" in text


def test_the_page_shows_what_the_cart_measured_beside_ours(
    serve: Serve, sessions: Sessions, arrivals: Arrivals, analyst: Analyst, clock: ManualClock
) -> None:
    value = {"task": "lvef", "value": 54.0, "unit": "%", "method": "biplane", "sop_instance_uid": "1.2.8"}
    report({"results": [], "cart": [value]}, sessions, arrivals, analyst, clock)
    client = serve().client

    assert "cart: LVEF 54.0 %, biplane" in client.get("/").text
    assert client.get(f"/api/studies/{STUDY}").json()["cart"] == [value]


def test_health_without_the_token_says_that_something_is_wrong_and_not_what(serve: Serve, door: socket.socket) -> None:
    client, other = serve(token=TOKEN).client, serve(token=TOKEN).client
    right = client.get("/healthz")
    door.close()
    failing = other.get("/healthz")
    asked = client.get("/healthz", headers={"Authorization": f"Bearer {TOKEN}"})

    assert (right.status_code, right.json()) == (200, {"status": "ok"})
    assert (failing.status_code, failing.json()) == (503, {"status": "failing"})
    assert (asked.status_code, asked.json()["wrong"]) == (503, ["nobody accepts DICOM associations"])


def test_whoever_asks_for_the_health_without_the_token_makes_no_more_work_than_one(
    sessions: Sessions, store: InstanceStore, tmp_path: Path, broker: EmbeddedBroker, door: socket.socket
) -> None:
    now = [100.0]
    settings = page_settings(tmp_path / "data", broker.url)
    health = Health(settings, sessions, store, door.getsockname()[1], Pulse(), lambda: now[0])
    are_right = {health.is_right() for _ in range(20)}
    door.settimeout(0)
    door.accept()[0].close()
    with pytest.raises(BlockingIOError):
        door.accept()
    now[0] += 3
    health.is_right()
    door.accept()[0].close()

    assert are_right == {True}


def test_a_clock_that_does_not_tick_is_wrong(serve: Serve) -> None:
    now = [0.0]
    client = serve(pulse=Pulse(lambda: now[0])).client
    now[0] = LOST.total_seconds()
    before = client.get("/healthz")
    now[0] += 1
    after = client.get("/healthz")

    assert before.status_code == 200
    assert (after.status_code, after.json()["wrong"]) == (503, ["the clock of the node does not tick"])


def test_each_tick_without_a_mistake_is_a_beat(sessions: Sessions, broker: EmbeddedBroker) -> None:
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    now[0] = LOST.total_seconds() + 1
    was_lost = pulse.is_lost
    with ticking(sessions, broker, pulse):
        wait_until(lambda: not pulse.is_lost)

    assert was_lost


def test_a_tick_that_fails_is_no_beat(
    sessions: Sessions, broker: EmbeddedBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    with sessions() as session:
        session.connection().exec_driver_sql("ALTER TABLE study RENAME TO gone")
        session.commit()
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    now[0] = LOST.total_seconds() + 1
    said: list[str] = []
    with ticking(sessions, broker, pulse):
        wait_until(lambda: bool(said.append(capsys.readouterr().out)) or "ledger_not_ticked" in "".join(said))

    assert pulse.is_lost


@contextmanager
def ticking(sessions: Sessions, broker: EmbeddedBroker, pulse: Pulse) -> Iterator[None]:
    """Run the clock's thread until the block ends."""
    stop, bell = threading.Event(), Bell(broker.url)
    ticker = Ticker(sessions, bell, StudySection(quiet_seconds=30), utc_now, pulse)
    thread = threading.Thread(target=ticker.run, args=(stop,))
    thread.start()
    yield
    stop.set()
    thread.join()
    bell.close()


def test_a_failed_study_is_taken_up_over_the_interface_and_a_worker_called(serve: Serve, failed: int) -> None:
    site = serve(token=TOKEN)
    site.client.headers["Authorization"] = f"Bearer {TOKEN}"
    answer = site.client.post(f"/api/studies/{STUDY}/retry")
    again = site.client.post(f"/api/studies/{STUDY}/retry")

    assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["error"]) == ("analysing", None)
    assert site.rung == [failed]
    assert (again.status_code, again.json()) == (409, {"detail": f"study {STUDY} has not failed: nothing to retry"})


@pytest.mark.parametrize("uid", ["1.2.3", "no-uid"])
def test_a_study_that_is_not_there_cannot_be_retried(serve: Serve, uid: str) -> None:
    client = serve(token=TOKEN).client

    assert client.post(f"/api/studies/{uid}/retry", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 404


def test_a_ledger_that_does_not_answer_is_said_in_one_sentence(serve: Serve, sessions: Sessions) -> None:
    client = serve().client
    with sessions() as session:
        session.connection().exec_driver_sql("ALTER TABLE study RENAME TO gone")
        session.commit()
    answer = client.get("/api/studies")

    assert (answer.status_code, answer.json()) == (503, {"detail": "the ledger does not answer"})
    assert answer.headers["cache-control"] == "no-store"
