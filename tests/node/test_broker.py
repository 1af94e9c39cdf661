"""The embedded broker: a real Valkey."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dicom_node.broker import EmbeddedBroker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """A running broker."""
    broker = EmbeddedBroker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


def test_it_answers_whoever_knows_its_url(broker: EmbeddedBroker) -> None:
    with redis.Redis.from_url(broker.url) as client:
        client.lpush("inference", "call")

        assert client.llen("inference") == 1


def test_it_answers_nobody_else(broker: EmbeddedBroker) -> None:
    port = int(broker.url.rpartition(":")[2].partition("/")[0])
    with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_its_password_is_not_in_the_process_list(broker: EmbeddedBroker) -> None:
    password = broker.url.removeprefix("redis://:").partition("@")[0]
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]

    assert not [line for line in lines if password.encode() in line]


def test_it_keeps_nothing_on_disk_and_its_folder_to_itself(tmp_path: Path, broker: EmbeddedBroker) -> None:
    with redis.Redis.from_url(broker.url) as client:
        client.lpush("inference", "call")
    broker.stop()

    assert {path.name for path in (tmp_path / "broker").iterdir()} <= {"valkey.log"}
    assert stat.S_IMODE((tmp_path / "broker").stat().st_mode) == 0o700


def test_it_starts_again_under_the_same_url(broker: EmbeddedBroker) -> None:
    url = broker.url
    broker.stop()
    was_running = broker.is_alive()
    broker.start()

    with redis.Redis.from_url(url) as client:
        assert client.ping()
    assert not was_running


def test_it_dies_with_who_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from dicom_node.broker import EmbeddedBroker\n"
        "from dicom_node.logs import configure_logs; configure_logs()\n"
        "broker = EmbeddedBroker(Path(sys.argv[1])); broker.start(); print(broker.url, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert owner.stdout is not None
    with owner, redis.Redis.from_url(owner.stdout.readline().strip()) as client:
        pid = int(client.info("server")["process_id"])
        owner.kill()
        owner.wait(10)
        deadline = time.monotonic() + 10
        while is_running(pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Return whether the process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
