"""The bell: real messages in a real Valkey, read back as a Celery worker would."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from celery import Celery
from structlog.testing import capture_logs

from dicom_node import dispatch
from dicom_node.broker import EmbeddedBroker
from dicom_node.clock import utc_now
from dicom_node.dispatch import QUEUE, QUEUE_MAX, TASK, Bell
from dicom_node.identity import UID
from dicom_node.intake import Intake
from dicom_node.ledger.engine import Sessions
from dicom_node.store import InstanceStore
from tests.doubles.arrivals import STUDY, instance
from tests.doubles.proxy import running_line
from tests.patience import eventually, wait_until


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """A running broker."""
    broker = EmbeddedBroker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    """SQLite alone: the bell knows no ledger."""
    return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"


@pytest.fixture
def bell(broker: EmbeddedBroker) -> Iterator[Bell]:
    """A bell on it."""
    bell = Bell(broker.url)
    yield bell
    bell.close()


def waiting(broker: EmbeddedBroker) -> list[int]:
    """Return the ids that wait in the queue, the oldest first."""
    with redis.Redis.from_url(broker.url) as client:
        messages = [json.loads(raw) for raw in client.lrange(QUEUE, 0, -1)]
    return [int(json.loads(base64.b64decode(one["body"]))[0][0]) for one in reversed(messages)]


def wait_for(broker: EmbeddedBroker, count: int) -> list[int]:
    """Return the queue once it holds so many calls."""
    deadline = time.monotonic() + 10
    while len(ids := waiting(broker)) < count:
        assert time.monotonic() < deadline, f"{ids} in the queue"
        time.sleep(0.01)
    return ids


def test_a_worker_hears_the_id_of_the_study(broker: EmbeddedBroker, bell: Bell) -> None:
    bell.ring(17)
    wait_for(broker, 1)
    with Celery("worker", broker=broker.url, set_as_current=False).connection_for_read() as connection:
        message = connection.SimpleQueue(QUEUE).get(timeout=5)

    assert message.headers["task"] == TASK
    assert message.headers["ignore_result"] is True
    assert message.content_type == "application/json"
    assert message.payload[0] == [17]


def test_studies_are_called_for_in_the_order_of_ringing(broker: EmbeddedBroker, bell: Bell) -> None:
    for study_id in range(1, 21):
        bell.ring(study_id)

    assert wait_for(broker, 20) == list(range(1, 21))


def test_ringing_often_for_one_study_calls_seldom(broker: EmbeddedBroker, bell: Bell) -> None:
    for _ in range(5000):
        bell.ring(1)
    bell.ring(2)
    ids = wait_for(broker, 2)

    while 2 not in ids:
        ids = wait_for(broker, len(ids) + 1)
    assert len(ids) < 500


def test_closing_rings_for_what_waits(broker: EmbeddedBroker) -> None:
    bell = Bell(broker.url)
    for study_id in range(50):
        bell.ring(study_id)
    bell.close()

    assert len(waiting(broker)) == 50


def test_a_broker_that_is_down_costs_the_one_who_rings_nothing(broker: EmbeddedBroker, bell: Bell) -> None:
    broker.stop()
    began = time.monotonic()
    for study_id in range(100):
        bell.ring(study_id)

    assert time.monotonic() - began < 5  # a hundred times less than a hundred time-outs


def test_the_bell_rings_again_when_the_broker_is_back(broker: EmbeddedBroker, bell: Bell) -> None:
    bell.ring(1)
    wait_for(broker, 1)
    broker.stop()
    with capture_logs() as logs:
        bell.ring(2)
        wait_until(lambda: "bell_silent" in [line["event"] for line in logs])
    broker.start()
    bell.ring(4)

    assert 4 in until(broker, 4, bell)


def until(broker: EmbeddedBroker, study_id: int, bell: Bell) -> list[int]:
    """Return the queue once it holds this study, ringing as the node's clock does."""
    deadline = time.monotonic() + 20
    while study_id not in (ids := waiting(broker)):
        assert time.monotonic() < deadline
        bell.ring(study_id)
        time.sleep(0.1)
    return ids


def test_a_line_that_was_cut_while_nobody_rang_loses_no_call(broker: EmbeddedBroker) -> None:
    """Where the broker ended it, redis-py sees that before it sends; a line that fell silent is noticed in the call."""
    port = urlsplit(broker.url).port
    assert port is not None
    with running_line(("127.0.0.1", port)) as line:
        bell = Bell(broker.url.replace(str(port), str(line.port)))
        bell.ring(1)
        wait_for(broker, 1)
        line.fall_silent()
        bell.ring(2)
        after_silence = wait_for(broker, 2)
        broker.stop()
        broker.start()
        bell.ring(3)
        after_restart = wait_for(broker, 1)
        bell.close()

    assert (after_silence, after_restart) == ([1, 2], [3])


def test_calls_do_not_pile_up_where_no_worker_listens(broker: EmbeddedBroker, bell: Bell) -> None:
    for study_id in range(QUEUE_MAX * 2):
        bell.ring(study_id)
    bell.close()

    assert len(waiting(broker)) <= QUEUE_MAX


def test_a_full_queue_is_said_once_and_not_at_each_ring(broker: EmbeddedBroker, bell: Bell) -> None:
    """It may be full for hours."""
    with capture_logs() as lines, redis.Redis.from_url(broker.url) as client:
        for study_id in range(QUEUE_MAX + 1):
            bell.ring(study_id)
        wait_until(lambda: client.llen(QUEUE) == QUEUE_MAX)
        bell.ring(QUEUE_MAX + 1)
        bell.close()

    assert [line["event"] for line in lines].count("bell_not_rung") == 1


def test_each_call_is_in_the_queue_without_waiting_for_the_next(broker: EmbeddedBroker, bell: Bell) -> None:
    with redis.Redis.from_url(broker.url) as client:
        for study_id in range(100):
            began = time.monotonic()
            bell.ring(study_id)
            while client.llen(QUEUE) <= study_id:
                assert time.monotonic() - began < 5


@pytest.mark.parametrize("pause", [None, 0.005], ids=["says nothing", "byte by byte"])
def test_a_broker_that_answers_slowly_holds_up_nobody_who_rings(
    broker: EmbeddedBroker, sessions: Sessions, store: InstanceStore, pause: float | None
) -> None:
    port = urlsplit(broker.url).port
    assert port is not None
    with running_line(("127.0.0.1", port), answers_left=None if pause else 0, pause=pause or 0.0) as line:
        bell = Bell(broker.url.replace(str(port), str(line.port)))
        intake = Intake(sessions, store, utc_now, bell.ring)
        for number in range(20):
            intake.receive(instance(STUDY, UID(f"1.2.3.{number}")))
        at_once = waiting(broker)
        if pause is None:
            line.answers_left = None
        calls = until(broker, 1, bell)
        bell.close()

    assert at_once == []
    assert 1 in calls


def test_a_bell_that_has_just_rung_gathers_and_loses_nothing(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message for each image is CPU that receiving needs."""
    monkeypatch.setattr(dispatch, "_RESTS", 1e6)
    monkeypatch.setattr(dispatch, "_LONGEST_REST", 60.0)
    bell = Bell(broker.url)
    bell.ring(1)
    wait_for(broker, 1)

    bell.ring(2)
    has_rung = eventually(lambda: len(waiting(broker)) > 1, patience=0.5)
    bell.ring(1)
    bell.ring(2)
    bell.close()

    assert not has_rung
    assert waiting(broker) == [1, 2, 1]
