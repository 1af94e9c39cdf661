"""Names of files and folders: given without taking one away, and made to survive a power cut."""

import errno
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

_NUM_MET = 8  # folders that are held open: as many studies come in at one time, mostly
_SWEEPS = 8  # that come just then, one after the other: none does
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # such as FAT, or some shares


def give_new_name(part: Path, target: Path) -> bool:
    """Give a file a name that nothing has yet, in place of its own; False: something has it, or it cannot be told.

    A rename would take the name from a file that is safe already, and give it to one that is not yet.

    Raises:
        OSError: the disk failed.
    """
    try:
        in_folder(target.parent, lambda: os.link(part, target))
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    os.unlink(part)  # noqa: PTH108
    return True


def in_folder(folder: Path, give: Callable[[], object]) -> None:
    """Give a name in a folder that may have to be made first; a sweep, or retention, may remove it while it is empty.

    Raises:
        OSError: the disk failed.
    """
    for _ in range(_SWEEPS):
        try:
            give()
        except FileNotFoundError:
            folder.mkdir(mode=0o700, exist_ok=True)
        else:
            return
    give()


class Names:
    """Makes names in folders survive a power cut, and the names of these folders.

    A folder's own name is synced when it is first met: another process may have made it a moment ago, and not yet have
    synced it. It is held open from then on, so that one which was made anew in its place is told from it.
    """

    def __init__(self) -> None:
        self._met: dict[Path, int] = {}
        weakref.finalize(self, _close_all, self._met)

    def sync(self, folders: Sequence[Path]) -> None:
        """Sync all of these folders.

        Raises:
            FileNotFoundError: one is gone, and all names in it; the others are synced.
            OSError: the disk failed.
        """
        gone: FileNotFoundError | None = None
        for folder in dict.fromkeys(folders):
            known = self._met.get(folder)
            try:
                if known is not None and os.path.samestat(os.stat(folder), os.fstat(known)):  # noqa: PTH116
                    os.fsync(known)
                    continue
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                gone = error
                continue
            try:
                os.fsync(descriptor)
                sync_folder(folder.parent)
                self._meet(folder, os.dup(descriptor))
            finally:
                os.close(descriptor)
        if gone is not None:
            raise gone

    def _meet(self, folder: Path, descriptor: int) -> None:
        self._forget(folder)
        if len(self._met) >= _NUM_MET:
            self._forget(next(iter(self._met)))
        self._met[folder] = descriptor

    def _forget(self, folder: Path) -> None:
        descriptor = self._met.pop(folder, None)
        if descriptor is not None:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _close_all(held: dict[Path, int]) -> None:
    while held:
        os.close(held.popitem()[1])
