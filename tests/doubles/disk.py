"""A small disk: a file system of its own where the machine lets us mount one, else a store that counts."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dicom_node.store import InstanceStore


class SmallStore(InstanceStore):
    """A store on a disk of so many bytes that holds nothing else."""

    def __init__(self, root: Path, *, num_bytes: int, min_free_bytes: int) -> None:
        self._num_bytes = num_bytes
        super().__init__(root, min_free_bytes=min_free_bytes)

    def free_bytes(self) -> int:
        """Return what its files leave of it."""
        return self._num_bytes - sum(path.stat().st_size for path in self.path("").rglob("*") if path.is_file())


@contextmanager
def small_disk(folder: Path, num_bytes: int, min_free_bytes: int) -> Iterator[InstanceStore]:
    """Give a store on a disk of so many bytes until the block ends."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:  # no rights, as in most containers
        yield SmallStore(folder, num_bytes=num_bytes, min_free_bytes=min_free_bytes)
        return
    try:
        yield InstanceStore(folder, min_free_bytes=min_free_bytes)
    finally:
        # Lazily: the store holds folders open as long as somebody has it.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
