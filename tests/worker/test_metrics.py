"""What a worker counts, and who may see it where it has no node beside it."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest, values
from pydicom import Dataset
from structlog.testing import capture_logs

from dicom_node.acceptor import listen
from dicom_node.clock import utc_now
from dicom_node.completion import tick
from dicom_node.ledger.engine import Sessions
from dicom_node.metrics.shared import FOLDER_VARIABLE, count_in
from dicom_node.settings import Settings, settings_from
from dicom_node.store import InstanceStore
from tests.binaries import free_port
from tests.doubles.incoming import arrive
from tests.exposed import FREE, TOTAL, cuda_like, engine_like
from tests.scrape import Scrape, parsed, scrape
from worker.analyse import Analyst
from worker.metrics import WorkerMetrics
from worker.metrics_server import counts

TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def registry() -> CollectorRegistry:
    """Where one process counts."""
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> WorkerMetrics:
    """Its counts."""
    return WorkerMetrics(registry)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose way to count is its own again in the end."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


def counted(registry: CollectorRegistry) -> Scrape:
    """Return what was counted."""
    return parsed(generate_latest(registry).decode())


def configured(port: int, **web: str) -> Settings:
    """Return settings of a worker that serves its metrics on this port."""
    return settings_from({"worker": {"metrics_port": port}, "web": web})


def test_loops_reasons_steps_and_reports_are_counted(
    analyst: Analyst,
    sessions: Sessions,
    store: InstanceStore,
    study: list[Dataset],
    metrics: WorkerMetrics,
    registry: CollectorRegistry,
) -> None:
    study_id = arrive(study[1:], sessions, store)
    tick(sessions, lambda: utc_now() + timedelta(minutes=1), timedelta(seconds=1))
    replace(analyst, destinations=(), metrics=metrics).drain(study_id)
    found = counted(registry)

    assert found("echo_node_loops_analysed_total") == 1
    reasons = found.of("echo_node_instances_not_analysed_total")
    assert {reason: number for reason, number in reasons.items() if number} == {"still": 1.0}
    steps = found.of("echo_node_loop_seconds_count")
    assert steps == {"decode": 2.0, "network": 1.0, "attention": 0.0}
    assert found("echo_node_loop_seconds_sum", step="network") > 0
    reports = found.of("echo_node_reports_total")
    assert {outcome: number for outcome, number in reports.items() if number} == {"composed": 1.0}


def test_the_networks_in_use_are_told_from_those_before(metrics: WorkerMetrics, registry: CollectorRegistry) -> None:
    first, second = engine_like("first"), engine_like("second")
    metrics.holds(first)
    metrics.holds(first)
    metrics.holds(second)

    assert counted(registry).of("echo_node_worker_info") == {"cpu first 1.0": 0.0, "cpu second 1.0": 1.0}


def test_a_gpu_is_asked_for_its_memory_and_its_use(metrics: WorkerMetrics, registry: CollectorRegistry) -> None:
    """Of the whole device: others may use it too."""
    metrics.look_at_gpu(torch.device("cuda:1"), cuda_like())
    found = counted(registry)

    assert found("echo_node_gpu_memory_used_bytes", gpu="1") == TOTAL - FREE
    assert found("echo_node_gpu_memory_total_bytes", gpu="1") == TOTAL
    assert found("echo_node_gpu_utilisation_ratio", gpu="1") == 0.4


@pytest.mark.usefixtures("alone")
def test_who_shows_no_token_or_a_wrong_one_sees_no_metrics() -> None:
    """The token of the page; and nobody holds the server by saying nothing."""
    port = free_port()
    with counts(configured(port, token=TOKEN)) as folder:
        count_in(folder)
        WorkerMetrics().interrupted("disk")
        answers = [
            httpx.get(f"http://127.0.0.1:{port}/metrics", headers=headers).status_code
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN})
        ]
        found = scrape(port, TOKEN)
    with pytest.raises(httpx.TransportError):
        scrape(port, TOKEN)

    assert answers == [401, 401, 401]
    assert found("echo_node_analysis_interrupted_total", reason="disk") == 1


@pytest.mark.usefixtures("alone")
def test_without_a_token_this_machine_sees_them() -> None:
    port = free_port()
    with counts(configured(port)) as folder:
        count_in(folder)
        WorkerMetrics()
        assert scrape(port)("echo_node_loops_analysed_total") == 0


@pytest.fixture
def given_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: None) -> Path:
    """The folder of the node that started the worker."""
    (tmp_path / "counts").mkdir()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "counts"))
    return tmp_path / "counts"


def test_the_worker_of_a_node_counts_with_it_and_serves_nothing(given_folder: Path) -> None:
    """What it counts is on the page."""
    port = free_port()
    with counts(configured(port)) as folder, pytest.raises(httpx.TransportError):
        scrape(port)

    assert folder == given_folder


@pytest.mark.usefixtures("alone")
def test_a_port_that_is_taken_stops_no_worker() -> None:
    with listen("127.0.0.1", 0) as taken, capture_logs() as logs:
        port = taken.getsockname()[1]
        with counts(configured(port)) as folder:
            assert folder is not None

    (line,) = logs
    assert (line["event"], line["address"]) == ("worker_metrics_not_served", f"127.0.0.1:{port}")


def test_beyond_this_machine_metrics_need_a_token() -> None:
    with pytest.raises(Exception, match=r"web\.token: needed when worker\.metrics_host"):
        settings_from({"worker": {"metrics_port": 9108, "metrics_host": "0.0.0.0"}})

    assert settings_from({"worker": {"metrics_host": "0.0.0.0"}}).worker.metrics_port == 0
