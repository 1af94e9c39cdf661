"""Several processes count as one, and what a process counted outlives it."""

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, generate_latest, values
from prometheus_client.registry import CollectorRegistry
from structlog.testing import capture_logs

from dicom_node.metrics import shared
from dicom_node.metrics.shared import LIVE, SharedCollector, count_in, counting_folder
from tests.scrape import Scrape, parsed

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where they count."""
    with counting_folder(str(tmp_path)) as made:
        assert made is not None
        yield made


def count(folder: Path, say: Connection) -> None:
    """Count as much as is asked for, in a process of its own."""
    count_in(folder)
    counter = Counter("test_things", "Things")
    gauge = Gauge("test_level", "Level", multiprocess_mode=LIVE)
    say.send("ready")
    while True:
        number = say.recv()
        counter.inc(number)
        gauge.set(number)
        say.send("done")


class Process:
    """One that counts."""

    def __init__(self, folder: Path) -> None:
        self._tell, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=count, args=(folder, theirs), daemon=True)
        self._process.start()
        assert self._tell.recv() == "ready"

    def count(self, number: int) -> None:
        """Let it count."""
        self._tell.send(number)
        assert self._tell.recv() == "done"

    def kill(self) -> None:
        """End it without a word."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(60)


def scraped(folder: Path) -> Scrape:
    """Return what the processes of a folder have counted."""
    registry = CollectorRegistry()
    registry.register(SharedCollector(folder))
    return parsed(generate_latest(registry).decode())


def test_counts_add_up_outlive_their_process_and_are_gone_on_with(folder: Path) -> None:
    """A gauge is shown while its process lives; who comes after it takes its files, so that they stay few."""
    first, second = Process(folder), Process(folder)
    first.count(2)
    second.count(3)
    both = scraped(folder)
    first.kill()
    second.kill()
    nobody = scraped(folder)
    third = Process(folder)
    fresh = scraped(folder)
    third.count(4)
    last = scraped(folder)
    third.kill()

    assert both("test_things_total") == nobody("test_things_total") == 5
    assert both("test_level") == 3
    assert nobody.of("test_level") == {}
    assert fresh.of("test_level") == {}
    assert (last("test_things_total"), last("test_level")) == (9, 4)
    assert len(list(folder.glob("counter_*.db"))) == 2


def test_a_folder_that_was_left_behind_is_emptied_and_gone_in_the_end(tmp_path: Path) -> None:
    """A node that is killed leaves its own."""
    with counting_folder(str(tmp_path)) as made:
        assert made is not None
        (made / "counter_7.db").write_bytes(b"old")
        with counting_folder(str(tmp_path)) as again:
            assert again == made
            assert not (made / "counter_7.db").exists()
            assert made.stat().st_mode & 0o777 == 0o700
        with counting_folder(f"{tmp_path} of another") as other:
            assert other != made

    assert not made.exists()


def not_ours(folder: Path) -> None:
    """Make the folder another user's."""
    os.chown(folder, 12345, 12345)


def a_link(folder: Path) -> None:
    """Make it a link."""
    folder.rmdir()
    folder.symlink_to(folder.parent)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("spoil", [not_ours, a_link])
def test_a_folder_that_somebody_else_has_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    """Everybody may write to /dev/shm; the node works on, without metrics."""
    monkeypatch.setattr(shared, "_MEMORY", tmp_path)
    with counting_folder("node") as made:
        assert made is not None
    made.mkdir()
    spoil(made)
    with capture_logs() as logs, counting_folder("node") as refused:
        assert refused is None

    assert [line["event"] for line in logs] == ["metrics_not_counted"]
    assert made.exists()


def test_without_a_place_in_memory_nothing_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_MEMORY", tmp_path / "none")
    with capture_logs() as logs, counting_folder("node") as refused:
        assert refused is None

    assert logs[0]["reason"] == "No such file or directory"


def test_all_that_a_process_counts_has_its_room_before_it_counts(tmp_path: Path, folder: Path) -> None:
    """A page that is not there when it is written to ends the process."""
    process = Process(folder)
    process.count(1)
    files = list(folder.glob("*.db"))
    process.kill()

    assert len(files) == 3
    assert all(one.stat().st_blocks * 512 >= one.stat().st_size > 0 for one in files)


def test_a_process_for_which_there_is_no_room_works_without_counting(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory fills up, and an acceptor that is started again must not die of it."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = values.ValueClass
    with capture_logs() as logs:
        count_in(folder)

    assert [line["event"] for line in logs] == ["metrics_not_counted"]
    assert values.ValueClass is before
