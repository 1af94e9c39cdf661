"""A shelf: versions of an ensemble side by side, and a link to the one that workers load.

SHELF/versions/V/   a version, never changed once it has its name
SHELF/current       link to the version in use; replaced in one rename, so that a reader sees the old or the new one
SHELF/.current.new  link that becomes `current`; made before its version has its name, so that a version which a kill
                    kept from use is told from those that were in use
SHELF/.lock         held while somebody publishes or rolls back; its holder's death frees it

Killed at any moment, what was current stays current: a new version is whole before its name exists, and it has its
name before the link turns to it.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model.bundle import write_folder
from model.ensemble import CURRENT, MANIFEST
from trainer.errors import PublishError, UsageError

_VERSIONS = "versions"
_NEXT = f".{CURRENT}.new"
_BACK = f".{CURRENT}.back"
_LOCK = ".lock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # one plain path component


class Shelf:
    """A shelf whose lock is held."""

    def __init__(self, path: Path) -> None:
        """Take a locked folder; `locked` is the way in."""
        self.path = path

    @property
    def current(self) -> Path | None:
        """Return the folder of the version in use, None before the first."""
        return self._linked(CURRENT)

    @property
    def left(self) -> Path | None:
        """Return the folder of the version that is whole but never came into use, for its publisher was killed."""
        found = self._linked(_NEXT)
        return found if found is not None and found.exists() else None

    def version_path(self, version: str) -> Path:
        """Return the folder that a version has or is to have.

        Raises:
            UsageError: it is no name of a folder.
        """
        if not _NAME.fullmatch(version):
            raise UsageError(f"--version {version!r}: use letters, digits, '.', '_' and '-', at most 64")
        return self.path / _VERSIONS / version

    def add(self, version: Path, write: Callable[[Path], None]) -> None:
        """Put a version beside the others, whole or not at all; it is not in use yet."""
        version.parent.mkdir(exist_ok=True)
        for left_over in version.parent.glob(".*"):  # of a publisher that was killed: the lock is ours
            shutil.rmtree(left_over)
        self._link(_NEXT, version)
        write_folder(version, write)

    def switch(self) -> None:
        """Make the version that was added last, perhaps by a publisher that was killed then, the one in use."""
        self._turn(_NEXT)

    def switch_back(self, version: Path) -> None:
        """Make a version that was in use the one in use again."""
        self._link(_BACK, version)
        self._turn(_BACK)

    def _linked(self, name: str) -> Path | None:
        link = self.path / name
        return self.path / link.readlink() if link.is_symlink() else None

    def _link(self, name: str, version: Path) -> None:
        link = self.path / name
        link.unlink(missing_ok=True)
        link.symlink_to(Path(_VERSIONS) / version.name)

    def _turn(self, name: str) -> None:
        (self.path / name).replace(self.path / CURRENT)
        _fsync(self.path)


@contextmanager
def locked(path: Path, *, make: bool) -> Iterator[Shelf]:
    """Yield the shelf at `path`; nobody else changes it meanwhile.

    Args:
        path: a shelf; with `make`, a folder that is empty or does not exist will do.
        make: whether a missing shelf is made.

    Raises:
        PublishError: it is no shelf, somebody else holds it, or the disk does not take what is written.
    """
    _check(path, make=make)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (path / _LOCK).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PublishError(f"{path}: somebody else publishes here: try again when that is done") from error
            yield Shelf(path)
    except OSError as error:
        where = error.filename or path
        raise PublishError(
            f"{where}: {error.strerror or error}: what is in use stays; mend it and try again"
        ) from error


def _check(path: Path, *, make: bool) -> None:
    if (path / MANIFEST).exists():
        raise PublishError(
            f"{path}: is a plain ensemble, whose files workers may be reading: publish to a new folder, and name that"
            " as ensemble.path in the node's configuration"
        )
    link = path / CURRENT
    if link.exists() and not link.is_symlink():
        raise PublishError(f"{link}: is no link: copy the shelf with its links (cp -a), or publish to a new folder")
    is_shelf = link.is_symlink() or (path / _LOCK).exists()
    if not is_shelf and not make:
        raise PublishError(f"{path}: is no shelf: nothing was published there yet")
    if not is_shelf and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise PublishError(f"{path}: is there and is no shelf: publish to a new folder")


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
