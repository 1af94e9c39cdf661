"""The instance store: what a peer sent, kept byte for byte; nothing half-written can be seen under a final name."""

import errno
import hashlib
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from dicom_node.errors import OutOfSpace, StoreError
from dicom_node.identity import UID

_INCOMING = "incoming"  # on the same file system as the others: a rename must be one
_INSTANCES = "instances"
_REPORTS = "reports"
_PICTURES = "pictures"
_QUARANTINE = "quarantine"
_PART = ".part"
_DIGITS = 12  # of the digest in a file's name: enough to tell versions of one instance apart
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A file that survives a power cut from now on."""

    path: str
    """Relative to data_dir."""
    sha256: str
    """Of the data set's bytes, without preamble and group 2."""
    num_bytes: int
    """Of the data set."""


def dataset_digest(dataset: bytes) -> str:
    """Return the sha256 by which the content of an instance is known."""
    return hashlib.sha256(dataset).hexdigest()


class InstanceStore:
    """The files below data_dir; any number of processes and threads may share it."""

    def __init__(self, root: Path, min_free_bytes: int) -> None:
        self._root = root
        self._min_free_bytes = min_free_bytes
        for name in ("", _INCOMING, _INSTANCES, _REPORTS, _PICTURES, _QUARANTINE):
            (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, relative: str) -> Path:
        """Return the absolute path of what the ledger keeps as a relative one."""
        return self._root / relative

    def keep(self, study_uid: UID, sop_uid: UID, part10_header: bytes, dataset: bytes) -> Kept:
        """Make an instance safe: written, fsynced, renamed, folder fsynced. The same bytes again land on the same name.

        Raises:
            OutOfSpace: the reserve is reached; nothing was kept.
            StoreError: nothing was kept.
        """
        digest = dataset_digest(dataset)
        target = Path(_INSTANCES) / study_uid / f"{sop_uid}-{digest[:_DIGITS]}.dcm"
        self._check_reserve(len(part10_header) + len(dataset))
        self._write(target, (part10_header, dataset))
        return Kept(path=str(target), sha256=digest, num_bytes=len(dataset))

    def keep_report(self, sop_uid: UID, content: bytes) -> str:
        """Make a report safe in the same way and return its relative path; the reserve is there for it.

        Raises:
            OutOfSpace, StoreError: nothing was kept.
        """
        target = Path(_REPORTS) / f"{sop_uid}.dcm"
        self._write(target, (content,))
        return str(target)

    def keep_picture(self, study_uid: UID, sop_uid: UID, content: bytes) -> str:
        """Make a picture of a report safe in the same way and return its relative path; retention removes it with the
        images of its study.

        Raises:
            OutOfSpace, StoreError: nothing was kept.
        """
        target = Path(_PICTURES) / study_uid / f"{sop_uid}.dcm"
        self._check_reserve(len(content))  # it is there for the report
        self._write(target, (content,))
        return str(target)

    def quarantine(self, part10_header: bytes, dataset: bytes) -> Kept:
        """Set bytes aside for a person; nothing in the node reads them again.

        Raises:
            OutOfSpace, StoreError: nothing was kept.
        """
        digest = dataset_digest(dataset)
        target = Path(_QUARANTINE) / f"{digest}.dcm"
        self._check_reserve(len(part10_header) + len(dataset))
        self._write(target, (part10_header, dataset))
        return Kept(path=str(target), sha256=digest, num_bytes=len(dataset))

    def exists(self, relative: str) -> bool:
        """Return whether the file is there."""
        return self.path(relative).exists()

    def remove(self, relative: str) -> None:
        """Remove a file that no row refers to; a missing one is as good."""
        self.path(relative).unlink(missing_ok=True)

    def study_bytes(self, study_uid: UID) -> int:
        """Return the size of all images of a study, and of the pictures of its reports."""
        folders = [folder for folder in self._folders(study_uid) if folder.is_dir()]
        return sum(path.stat().st_size for folder in folders for path in folder.iterdir())

    def remove_study(self, study_uid: UID) -> None:
        """Remove all images of a study, and the pictures of its reports.

        Raises:
            StoreError: some could not be removed.
        """
        for folder in self._folders(study_uid):
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StoreError(f"{folder}: cannot be removed: {error.strerror}") from error

    def free_bytes(self) -> int:
        """Return the free bytes on the disk of data_dir."""
        return shutil.disk_usage(self._root).free

    def sweep(self) -> int:
        """Remove what a crash left half-written and return how many files; for the start, before anybody receives."""
        parts = list((self._root / _INCOMING).glob(f"*{_PART}"))
        for part in parts:
            part.unlink(missing_ok=True)
        return len(parts)

    def _folders(self, study_uid: UID) -> tuple[Path, Path]:
        return self._root / _INSTANCES / study_uid, self._root / _PICTURES / study_uid

    def _write(self, target: Path, pieces: tuple[bytes, ...]) -> None:
        part = self._root / _INCOMING / f"{uuid.uuid4().hex}{_PART}"
        try:
            _write_synced(part, pieces)
            self._rename_synced(part, self._root / target)
        except OSError as error:
            part.unlink(missing_ok=True)
            kind = OutOfSpace if error.errno in _NO_SPACE else StoreError
            raise kind(f"{target}: cannot be kept: {error.strerror}") from error

    def _check_reserve(self, num_bytes: int) -> None:
        try:
            free = self.free_bytes()
        except OSError as error:
            raise StoreError(f"{self._root}: cannot be looked at: {error.strerror}") from error
        if free - num_bytes < self._min_free_bytes:
            raise OutOfSpace(f"{free} bytes free, {num_bytes} wanted, node.min_free_bytes is {self._min_free_bytes}")

    def _rename_synced(self, part: Path, target: Path) -> None:
        folder = target.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            part.rename(target)
        except FileNotFoundError:  # retention removed the folder in between
            folder.mkdir(mode=0o700, exist_ok=True)
            part.rename(target)
        _sync_folder(folder)
        # Each time: another process may have made the folder a moment ago and not yet have synced its name.
        _sync_folder(folder.parent)


def _write_synced(path: Path, pieces: tuple[bytes, ...]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
