"""The instance store: what a peer sent, kept byte for byte; nothing half-written can be seen under a final name."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dicom_node.errors import ObjectDiffers, OutOfSpace, StoreError
from dicom_node.identity import UID
from dicom_node.naming import Names, give_new_name, in_folder, sync_folder
from dicom_node.together import Together

INCOMING = "incoming"
"""On the same file system as the others: a rename must be one."""
INSTANCES = "instances"
REPORTS = "reports"
PICTURES = "pictures"
PREVIEWS = "previews"
"""What the page shows of a loop, under the name of the loop's own file."""
QUARANTINE = "quarantine"
_BESIDE_IMAGES = (PICTURES, PREVIEWS)  # each with a folder a study, which goes with the study's images
_PART = ".part"
_PIECE = 1 << 20
_DIGITS = 12  # of the digest in a file's name: enough to tell versions of one instance apart
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # such as NFS without its lock service


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A file that survives a power cut from now on."""

    path: str
    """Relative to data_dir."""
    sha256: str
    """Of the data set's bytes, without preamble and group 2."""
    num_bytes: int
    """Of the data set."""
    inode: int = field(compare=False)
    """Of the file that is safe: another may take its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """A file that nobody needs any more."""

    path: str
    """Relative to data_dir."""
    num_bytes: int
    error: str = ""
    """Why it could not be removed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What an instance is known by."""

    sha256: str
    """Of the data set's bytes, without preamble and group 2."""
    num_bytes: int
    """Of the data set."""


class Objects(Protocol):
    """Where machines that share no folder have their files in common, each by its relative path."""

    @property
    def away_seconds(self) -> float:
        """Return how long each call has failed, from the first to the last one; 0: the last one did not fail."""
        ...

    def put(self, relative: str, path: Path) -> None:
        """Make a copy safe there; raises ObjectsUnavailable, or OSError of the file."""
        ...

    def get(self, relative: str, path: Path) -> None:
        """Write it to a file; raises ObjectLost, ObjectsUnavailable, or OSError of the file."""
        ...

    def names(self, folder: str) -> set[str]:
        """Return the names in a folder; raises ObjectsUnavailable."""
        ...

    def remove_folder(self, folder: str) -> None:
        """Remove all that is in a folder; raises ObjectsUnavailable."""
        ...


class Borrow(Protocol):
    """Returns the absolute path of a file, fetched if it was not here; raises as `InstanceStore.fetch`."""

    def __call__(self, relative: str, content: Content | None = None) -> Path: ...


def instance_path(study_uid: UID, sop_uid: UID, digest: str) -> str:
    """Return where an instance is kept, relative to data_dir."""
    return f"{INSTANCES}/{study_uid}/{sop_uid}-{digest[:_DIGITS]}.dcm"


def dataset_digest(dataset: bytes | bytearray) -> str:
    """Return the sha256 by which the content of an instance is known."""
    return hashlib.sha256(dataset).hexdigest()


class InstanceStore:
    """The files below data_dir; any number of processes and threads may share it."""

    def __init__(self, root: Path, min_free_bytes: int, objects: Objects | None = None) -> None:
        """Use the files below `root`, and the object store that other machines have in common with this one."""
        self._root = root
        self._min_free_bytes = min_free_bytes
        self._objects = objects
        for name in ("", INCOMING, INSTANCES, REPORTS, *_BESIDE_IMAGES, QUARANTINE):
            make_folder(root / name)
        _sync_names(root)  # another process may have made them a moment ago
        # The system tells of a failed fsync once: who asked again would hear that all is well.
        self._sync = Together(Names().sync, repeatable=False)

    @property
    def is_shared(self) -> bool:
        """Return whether other machines find in an object store what is kept here."""
        return self._objects is not None

    @property
    def objects_away_seconds(self) -> float:
        """Return how long the object store was asked and did not answer; 0: it does, or there is none."""
        return 0.0 if self._objects is None else self._objects.away_seconds

    def path(self, relative: str) -> Path:
        """Return the absolute path of what the ledger keeps as a relative one."""
        return self._root / relative

    def fetch(self, relative: str, content: Content | None = None) -> Path:
        """Return the absolute path of a file, which is fetched if it is not here and there is an object store.

        Args:
            relative: its path.
            content: what an instance must be; None: the ledger does not know.

        Raises:
            ObjectLost: the object store has not got it.
            ObjectDiffers: it has something else in its place.
            ObjectsUnavailable, OutOfSpace, StoreError: it cannot be fetched now.
        """
        path = self.path(relative)
        if self._objects is None or path.exists():
            return path
        if not relative.startswith(REPORTS):  # the reserve is there for them
            self._check_reserve(0 if content is None else content.num_bytes)
        part = self._root / INCOMING / f"{uuid.uuid4().hex}{_PART}"
        try:
            descriptor = _open_locked(part)
            try:
                self._objects.get(relative, part)
                if content is not None:
                    _check_content(part, relative, content)
                os.fsync(descriptor)
                self._rename_synced(part, path)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _not_kept(relative, error) from error
        finally:
            part.unlink(missing_ok=True)
        return path

    @contextmanager
    def borrowing(self) -> Iterator[Borrow]:
        """Give what fetches files that stay here until the block ends."""
        yield self.fetch

    def share(self, relative: str) -> bool:
        """Put a file into the object store, if there is one; return whether the file is here.

        Raises:
            ObjectsUnavailable: the object store does not take it now.
            StoreError: the disk does not give it.
        """
        path = self.path(relative)
        if self._objects is None:
            return path.exists()
        try:
            self._objects.put(relative, path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StoreError(f"{relative}: cannot be read: {error.strerror}") from error
        return True

    def shared_names(self, folder: str) -> set[str]:
        """Return the names that a folder has in the object store; none, if there is no object store.

        Raises:
            ObjectsUnavailable: it does not say now.
        """
        return set() if self._objects is None else self._objects.names(folder)

    def keep(
        self, study_uid: UID, sop_uid: UID, part10_header: bytes, dataset: bytes | bytearray, *, is_new: bool = False
    ) -> Kept:
        """Make an instance safe: written and fsynced, and its name with it. The same bytes again land on the same name.

        Args:
            study_uid: whose folder it is for.
            sop_uid: begins its name.
            part10_header: preamble, prefix and group 2.
            dataset: as sent.
            is_new: no row has its path, so that nobody reads what has its name: it may have it before it is safe, and
                the disk makes both safe in one go. What fails after that is left: `remove` it under its name's lock.

        Raises:
            OutOfSpace: the reserve is reached; nothing was kept.
            StoreError: nothing was kept.
        """
        digest = ""

        def target() -> str:
            nonlocal digest
            digest = dataset_digest(dataset)  # while the disk writes
            return instance_path(study_uid, sop_uid, digest)

        self._check_reserve(len(part10_header) + len(dataset))
        staged = self._stage(target, (part10_header, dataset), name_first=is_new)
        path = _named(staged)
        return Kept(path=path, sha256=digest, num_bytes=len(dataset), inode=staged.inode)

    def keep_report(self, sop_uid: UID, content: bytes) -> str:
        """Make a report safe in the same way and return its relative path; the reserve is there for it.

        Raises:
            OutOfSpace, StoreError: nothing was kept.
        """
        return self._share_named(self.stage_report(sop_uid, content))

    def keep_picture(self, study_uid: UID, sop_uid: UID, content: bytes) -> str:
        """Make a picture of a report safe in the same way and return its relative path; retention removes it with the
        images of its study.

        Raises:
            OutOfSpace, StoreError: nothing was kept.
        """
        return self._share_named(self.stage_picture(study_uid, sop_uid, content))

    def keep_preview(self, instance_path: str, content: bytes) -> str:
        """Make the preview of a loop safe in the same way and return its relative path; retention removes it with the
        loop.

        Args:
            instance_path: of the loop, relative to data_dir.
            content: the preview.

        Raises:
            OutOfSpace, StoreError: nothing was kept.
        """
        self._check_reserve(len(content))
        target = preview_path(instance_path)
        return self._share_named(self._stage(lambda: target, (content,)))

    def stage_report(self, sop_uid: UID, content: bytes) -> "Staged":
        """Make a report safe, as `keep_report` does, that gets its name later, or never.

        Raises:
            OutOfSpace, StoreError: nothing was kept.
        """
        target = f"{REPORTS}/{sop_uid}.dcm"
        return self._stage(lambda: target, (content,))

    def stage_picture(self, study_uid: UID, sop_uid: UID, content: bytes) -> "Staged":
        """Make a picture safe, as `keep_picture` does, that gets its name later, or never.

        Raises:
            OutOfSpace, StoreError: nothing was kept.
        """
        self._check_reserve(len(content))  # it is there for the report
        target = f"{PICTURES}/{study_uid}/{sop_uid}.dcm"
        return self._stage(lambda: target, (content,))

    def quarantine(self, part10_header: bytes, dataset: bytes | bytearray) -> Kept:
        """Set bytes aside for a person; nothing in the node reads them again.

        Raises:
            OutOfSpace, StoreError: nothing was kept.
        """
        digest = dataset_digest(dataset)
        target = f"{QUARANTINE}/{digest}.dcm"
        self._check_reserve(len(part10_header) + len(dataset))
        staged = self._stage(lambda: target, (part10_header, dataset))
        return Kept(path=_named(staged), sha256=digest, num_bytes=len(dataset), inode=staged.inode)

    def is_intact(self, relative: str, sha256: str, num_bytes: int) -> bool:
        """Return whether a file still ends with the data set whose digest and length are given; False: or it is gone.

        Raises:
            StoreError: the disk does not say.
        """
        try:
            return _digest_of_end(self.path(relative), num_bytes) == sha256
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StoreError(f"{relative}: cannot be read: {error.strerror}") from error

    def set_aside(self, relative: str) -> None:
        """Move a damaged file out of the way of the same instance sent again; a missing one is as good.

        Raises:
            StoreError: it cannot be moved.
        """
        damaged = self.path(relative)
        try:
            aside = damaged.rename(self._root / QUARANTINE / damaged.name)
            os.utime(aside)  # from now on a person has retention.quarantine_days to look at it
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"{relative}: cannot be set aside: {error.strerror}") from error

    def remove_empty_folders(self, made_before: float) -> None:
        """Remove the folders of studies in which nothing is left, but for those that somebody has just made."""
        for name in (INSTANCES, *_BESIDE_IMAGES):
            with os.scandir(self._root / name) as folders:
                for folder in folders:
                    with contextlib.suppress(OSError):  # mostly: it is not empty
                        if folder.stat(follow_symlinks=False).st_mtime <= made_before:
                            Path(folder.path).rmdir()

    def exists(self, relative: str) -> bool:
        """Return whether the file is there."""
        return self.path(relative).exists()

    def holds(self, kept: Kept) -> bool:
        """Return whether the file that was made safe has its name still: another by this name may not be safe yet."""
        try:
            return os.stat(f"{self._root}/{kept.path}").st_ino == kept.inode  # noqa: PTH116
        except OSError:
            return False

    def remove(self, relative: str) -> None:
        """Remove a file that no row refers to, and the folder of a study that is empty then; a missing one is as good.

        Raises:
            OSError: it cannot be removed.
        """
        path = self.path(relative)
        path.unlink(missing_ok=True)
        if path.parent.parent != self._root:
            with contextlib.suppress(OSError):  # mostly: it is not empty
                path.parent.rmdir()

    def study_bytes(self, study_uid: UID) -> int:
        """Return the size of all images of a study, of their previews, and of the pictures of its reports."""
        folders = (f"{folder}/{study_uid}" for folder in (INSTANCES, *_BESIDE_IMAGES))
        return sum(found.st_size for folder in folders for _, found in self.files(folder))

    def remove_study(self, study_uid: UID) -> None:
        """Remove all images of a study, their previews, and the pictures of its reports; what comes in this moment may
        stay.

        Raises:
            StoreError: some could not be removed.
        """
        for folder in (self._root / name / study_uid for name in (INSTANCES, *_BESIDE_IMAGES)):
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise StoreError(f"{folder}: cannot be removed: {error.strerror}") from error

    def remove_shared_study(self, study_uid: UID) -> None:
        """Remove from the object store what `remove_study` removes here.

        Raises:
            ObjectsUnavailable: some may be left.
        """
        if self._objects is not None:
            for name in (INSTANCES, *_BESIDE_IMAGES):
                self._objects.remove_folder(f"{name}/{study_uid}")

    def free_bytes(self) -> int:
        """Return the free bytes on the disk of data_dir."""
        return shutil.disk_usage(self._root).free

    def files(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the relative path of each file below one of the store's folders, one study's folder after the other."""
        for path in _walk(self._root / folder):
            try:
                found = path.stat()
            except FileNotFoundError:  # it had its final name a moment ago, or retention was here
                continue
            yield str(path.relative_to(self._root)), found

    def sweep(self) -> list[str]:
        """Remove what a crash left half-written, and return the relative paths.

        What a living process writes stays, on whichever machine it runs: it holds the lock of its file.
        """
        return [relative for relative, _ in [*self.files(INCOMING)] if _remove_if_dead(self.path(relative))]

    def _stage(
        self, target: Callable[[], str], pieces: tuple[bytes | bytearray, ...], *, name_first: bool = False
    ) -> "Staged":
        """Return a file that is safe but for its name; `target` is asked for it while the disk writes.

        With `name_first` it has it by then, safe too, unless another file has it.
        """
        part = self._root / INCOMING / f"{uuid.uuid4().hex}{_PART}"
        try:
            descriptor = _open_locked(part)
            try:
                _write_all(descriptor, pieces)
                path = target()
                is_named = name_first and give_new_name(part, self._root / path)
                os.fsync(descriptor)
                if is_named:  # a file system with a journal has made the name safe with the file: this costs little
                    with contextlib.suppress(FileNotFoundError):  # a sweep took both: `holds` says so
                        self._sync((self._root / path).parent)
                inode = os.fstat(descriptor).st_ino
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            part.unlink(missing_ok=True)
            raise _not_kept(target(), error) from error
        name = _has_name if is_named else self._rename_synced
        return Staged(path, part, descriptor, inode, lambda: name(part, self._root / path))

    def _share_named(self, staged: "Staged") -> str:
        """Put a file into the object store, if there is one, and then give it its name."""
        try:
            if self._objects is not None:
                self._objects.put(staged.path, staged.part)
            staged.name()
        except OSError as error:
            raise _not_kept(staged.path, error) from error
        finally:
            staged.close()
        return staged.path

    def _check_reserve(self, num_bytes: int) -> None:
        try:
            free = self.free_bytes()
        except OSError as error:
            raise StoreError(f"{self._root}: cannot be looked at: {error.strerror}") from error
        if free - num_bytes < self._min_free_bytes:
            raise OutOfSpace(f"{free} bytes free, {num_bytes} wanted, node.min_free_bytes is {self._min_free_bytes}")

    def _rename_synced(self, part: Path, target: Path) -> None:
        in_folder(target.parent, lambda: part.rename(target))
        self._sync(target.parent)


class Staged:
    """A file that is safe, and in nobody's way: it has no name yet."""

    def __init__(self, path: str, part: Path, descriptor: int, inode: int, rename: Callable[[], None]) -> None:
        self.path = path
        """Relative to data_dir, once it has its name."""
        self.inode = inode
        self.part = part
        """Where it is until then."""
        self._is_named = False
        self._descriptor = descriptor  # its lock tells a sweep that somebody lives who wants it
        self._rename = rename

    def name(self) -> None:
        """Give it its name.

        Raises:
            OutOfSpace, StoreError: it cannot have it.
        """
        try:
            self._rename()
        except OSError as error:
            raise _not_kept(self.path, error) from error
        self._is_named = True

    def close(self) -> None:
        """Let go of it, and remove it if it has no name."""
        if not self._is_named:
            self.part.unlink(missing_ok=True)
        os.close(self._descriptor)  # and its lock: not before the file has its final name


def _has_name(_part: Path, _target: Path) -> None:
    """Do nothing: it has its name already."""


def _named(staged: Staged) -> str:
    try:
        staged.name()
    finally:
        staged.close()
    return staged.path


def _check_content(path: Path, relative: str, content: Content) -> None:
    """Hold what was fetched, which is all that the object store has, against what the ledger knows.

    Raises:
        ObjectDiffers: it is something else.
    """
    if _digest_of_end(path, content.num_bytes) != content.sha256:
        raise ObjectDiffers(f"{relative}: the object store has other bytes than were received")


def _digest_of_end(path: Path, num_bytes: int) -> str:
    """Return the sha256 of the last bytes of a file: of the data set, for it is known how long that is."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        start = os.fstat(file.fileno()).st_size - num_bytes
        file.seek(max(start, 0))
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _not_kept(target: str, error: OSError) -> StoreError:
    kind = OutOfSpace if error.errno in _NO_SPACE else StoreError
    return kind(f"{target}: cannot be kept: {error.strerror}")


def preview_path(instance_path: str) -> str:
    """Return where the preview of a loop is, or would be, both paths relative to data_dir."""
    return str(Path(PREVIEWS, *Path(instance_path).parts[1:]))


def make_folder(folder: Path) -> None:
    """Make a folder for the node alone, and those above it; each name that is made survives a power cut."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in missing:
        sync_folder(one.parent)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every file below; no folder lies in memory whole."""
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            else:
                yield Path(entry.path)


def _open_locked(part: Path) -> int:
    """Return a new file that `InstanceStore.sweep` leaves alone as long as it is open."""
    while True:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # a sweep has none either, and leaves it alone
                os.close(descriptor)
                raise
        if part.exists():
            return descriptor
        os.close(descriptor)  # a sweep came between the two


def _remove_if_dead(part: Path) -> bool:
    """Remove a file that nobody holds; what cannot be removed stays, and `orphans` names it."""
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _write_all(descriptor: int, pieces: tuple[bytes | bytearray, ...]) -> None:
    """Write, and let the disk begin with each piece at once: fsync then waits for little."""
    offset = 0
    for piece in pieces:
        view = memoryview(piece)
        while view:
            num_bytes = os.write(descriptor, view[:_PIECE])
            if num_bytes == _PIECE:
                # What this asks for is a start; what is not on the disk yet stays in memory for the worker.
                os.posix_fadvise(descriptor, offset, num_bytes, os.POSIX_FADV_DONTNEED)
            view, offset = view[num_bytes:], offset + num_bytes


def _sync_names(root: Path) -> None:
    """Make the names of folders survive a power cut: those in `root`, its own, and those of the folders above it."""
    for folder in (root, *root.absolute().parents):
        try:
            sync_folder(folder)
        except OSError:  # none that we could have made a folder in
            return
