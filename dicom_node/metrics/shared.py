"""Metrics of several processes of one machine: each counts in files of its own, and whoever is asked adds them up.

This is prometheus_client's multiprocess mode, but for one thing: a process is known by the first number that no other
holds, not by its process id. Whoever comes after one that died takes its number, and goes on with its counts; there are
never more files than processes were at once. The number is held by a lock: gauges of who holds none any more are left
out. The files are mapped into memory: they lie in memory too, or every count would be written to the disk in time.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import Metric, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import MultiProcessValue

from dicom_node import locks

log = structlog.get_logger(__name__)

FOLDER_VARIABLE = "ECHO_NODE_METRICS_FOLDER"
"""Environment variable by which a child that is a command of its own is told the folder."""

LIVE: Final = "livemostrecent"
"""Multiprocess mode of every gauge: the newest value of those that live."""

_MEMORY = Path("/dev/shm")
_PLACES = "places"
_KINDS = ("counter", "histogram", f"gauge_{LIVE}")
_FILE_BYTES = 1 << 15  # twice what any process fills


@contextmanager
def counting_folder(owner: str) -> Iterator[Path | None]:
    """Give an empty folder for the counts of one node's or worker's processes until the block ends; None: there is no
    room for one, and nothing is counted.

    Args:
        owner: what no other on this machine is; a folder that was left behind under the same is emptied.
    """
    folder = folder_of(owner)
    try:
        _remove(folder)
        folder.mkdir(mode=0o700)
        _reserve(folder / "room")
    except OSError as error:  # no such file system, no room in it, or somebody else's folder
        log.warning("metrics_not_counted", folder=str(folder), reason=error.strerror)
        yield None
        return
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def folder_of(owner: str) -> Path:
    """Return where the counts of an owner lie while it runs."""
    return _MEMORY / f"echo-node-{os.getuid()}-{hashlib.sha256(owner.encode()).hexdigest()[:12]}"


def count_in(folder: Path | None) -> None:
    """Let this process count in `folder` all metrics that are made from now on; a child by fork must call it itself."""
    if folder is None:
        return
    try:
        number = _take_place(folder)
    except OSError as error:  # the memory is full: better not to count than not to work
        log.warning("metrics_not_counted", folder=str(folder), reason=error.strerror)
        return
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # where prometheus_client looks for it, at each new file
    values.ValueClass = MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


class SharedCollector(Collector):
    """Adds up what the processes of a folder count."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Never closed: with any hold on the file this process would give back its own lock on it.
        self._places = os.open(folder / _PLACES, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        files = [path for path in self._folder.glob("*.db") if not _is_gauge(path) or self._is_held(path)]
        names = [str(path) for path in sorted(files)]
        merged: Iterable[Metric] = MultiProcessCollector.merge(names)  # type: ignore[no-untyped-call]
        return merged

    def _is_held(self, path: Path) -> bool:
        return locks.is_taken(self._places, int(path.stem.rsplit("_", 1)[1]))


def _take_place(folder: Path) -> int:
    """Return the number of this process, which is its own until it ends, with empty files where it had none before.

    Raises:
        OSError: there is no room for them.
    """
    places = os.open(folder / _PLACES, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    number = next(one for one in count() if locks.take(places, one))
    for kind in _KINDS:
        path = folder / f"{kind}_{number}.db"
        if _is_gauge(path):  # of who had the number before
            path.unlink(missing_ok=True)
        _reserve(path)
    return number


def _reserve(path: Path) -> None:
    """Give a file its room: to write to a mapped page for which there is none ends the process (SIGBUS)."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)


def _is_gauge(path: Path) -> bool:
    return path.name.startswith("gauge")


def _remove(folder: Path) -> None:
    """Remove a folder of ours that was left behind.

    Raises:
        OSError: it is none, or not ours.
    """
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    if found.st_uid != os.getuid():
        raise PermissionError(1, "it belongs to another user")
    shutil.rmtree(folder)
