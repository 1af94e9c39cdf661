"""What a worker keeps of what it fetched from the object store: bounded, and nothing in it is the only copy.

It lies in a folder of its own, so that whatever is removed from there is no file of the node's, even where a worker
shares the node's folder. A study's folder, or a report, goes as a whole: the least recently used first, never what
somebody uses, on this machine's word: who uses it holds its lock, and a process that is killed holds none.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import structlog

from dicom_node.errors import OutOfSpace
from dicom_node.settings import Node
from dicom_node.settings import Objects as ObjectsSection
from dicom_node.store import INSTANCES, PICTURES, PREVIEWS, REPORTS, Borrow, Content, InstanceStore, Objects

log = structlog.get_logger(__name__)

FETCHED = "fetched"
"""Folder in data_dir."""

KEPT_FOR = timedelta(days=1)
"""Longer nothing stays that nobody uses: retention, which is the node's, does not come here."""

_FOLDERS = (INSTANCES, REPORTS, PICTURES, PREVIEWS)


class FetchedStore(InstanceStore):
    """The files of a machine that has them from the object store, and puts there what it writes."""

    def __init__(self, data_dir: Path, min_free_bytes: int, objects: Objects, max_bytes: int) -> None:
        """Keep up to `max_bytes` in a folder of `data_dir`; what a node that runs here has there is read in place."""
        super().__init__(data_dir / FETCHED, min_free_bytes, objects)
        self._of_the_node = data_dir
        self._max_bytes = max_bytes
        self.sweep()
        self.make_room()

    @contextmanager
    def borrowing(self) -> Iterator[Borrow]:
        """Give what fetches files that stay here until the block ends."""
        with ExitStack() as until_then:
            held: set[Path] = set()

            def borrow(relative: str, content: Content | None = None) -> Path:
                own = self._of_the_node / relative
                return own if own.exists() else self._borrow(relative, content, until_then, held)

            yield borrow
        self.make_room()

    def make_room(self, wanted: int = 0) -> int:
        """Remove what was not used for so long, and of the rest what was not used for longest, until no more than
        `max_bytes` are left and the disk has so many free beyond its reserve, or all is in use; return how many bytes
        that was."""
        sizes = {unit: _num_bytes(unit) for name in _FOLDERS for unit in _entries(self.path(name))}
        too_many = max(sum(sizes.values()) - self._max_bytes, self._min_free_bytes + wanted - self.free_bytes())
        before = time.time() - KEPT_FOR.total_seconds()
        removed = 0
        for last_used, unit in sorted((_last_used(unit), unit) for unit in sizes):
            if removed >= too_many and last_used >= before:
                break
            if _remove_unused(unit):
                removed += sizes[unit]
        if removed:
            log.info("fetched_removed", bytes=removed)
        return removed

    def _borrow(self, relative: str, content: Content | None, until_then: ExitStack, held: set[Path]) -> Path:
        unit = self.path("/".join(Path(relative).parts[:2]))
        while True:
            was_here = self.exists(relative)
            try:
                path = self.fetch(relative, content)
            except OutOfSpace:
                if not self.make_room(0 if content is None else content.num_bytes):
                    raise
                continue
            if unit not in held:
                descriptor = _hold(unit)
                if descriptor is None:
                    continue  # somebody made room just then
                until_then.callback(os.close, descriptor)
                held.add(unit)
            if path.exists():
                if not was_here:
                    self.make_room()
                return path


def worker_store(node: Node, settings: ObjectsSection, objects: Objects | None) -> InstanceStore:
    """Return the store of a worker: the node's own folder, or, with an object store, what was fetched from there."""
    if objects is None:
        return InstanceStore(node.data_dir, min_free_bytes=node.min_free_bytes)
    return FetchedStore(node.data_dir, node.min_free_bytes, objects, settings.cache_bytes)


def _hold(unit: Path) -> int | None:
    """Return what holds a folder or a file until it is closed; None: it is gone."""
    try:
        descriptor = os.open(unit, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # a disk without locks: there nothing is removed either
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not _is_still(unit, descriptor):
        os.close(descriptor)
        return None
    os.utime(unit)  # the last use
    return descriptor


def _remove_unused(unit: Path) -> bool:
    """Remove a folder or a file unless somebody holds it; return whether it is gone."""
    try:
        descriptor = os.open(unit, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if unit.is_dir():
            shutil.rmtree(unit)
        else:
            unit.unlink()
    except OSError:  # mostly: it is held; or something came into it in this moment
        return False
    finally:
        os.close(descriptor)
    return True


def _is_still(unit: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(unit.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _entries(folder: Path) -> list[Path]:
    with os.scandir(folder) as found:
        return [Path(one.path) for one in found]


def _num_bytes(unit: Path) -> int:
    total = 0
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # somebody else makes room too
        for file in unit.iterdir() if unit.is_dir() else (unit,):
            total += file.stat().st_size
    return total


def _last_used(unit: Path) -> float:
    try:
        return unit.stat().st_mtime
    except FileNotFoundError:
        return 0.0
