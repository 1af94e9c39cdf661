"""The bell: real messages in a real Valkey, read back as a Celery worker would."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from dicom_node.broker import EmbeddedBroker
from dicom_node.dispatch import QUEUE, QUEUE_MAX, TASK, Bell


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """A running broker."""
    broker = EmbeddedBroker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


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
    bell.ring(2)
    time_of_loss = time.monotonic() + 0.5
    while time.monotonic() < time_of_loss:
        bell.ring(3)
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


def test_a_line_that_was_cut_while_nobody_rang_loses_no_call(broker: EmbeddedBroker, bell: Bell) -> None:
    bell.ring(1)
    wait_for(broker, 1)
    broker.stop()
    broker.start()
    bell.ring(2)

    assert wait_for(broker, 1) == [2]


def test_calls_do_not_pile_up_where_no_worker_listens(broker: EmbeddedBroker, bell: Bell) -> None:
    for study_id in range(QUEUE_MAX * 2):
        bell.ring(study_id)
    bell.close()

    assert len(waiting(broker)) <= QUEUE_MAX


def test_each_call_is_in_the_queue_without_waiting_for_the_next(broker: EmbeddedBroker, bell: Bell) -> None:
    with redis.Redis.from_url(broker.url) as client:
        for study_id in range(100):
            began = time.monotonic()
            bell.ring(study_id)
            while client.llen(QUEUE) <= study_id:
                assert time.monotonic() - began < 5
