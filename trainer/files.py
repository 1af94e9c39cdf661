"""Files that are seen whole or not at all, and a lock file."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary file to fill, which then takes the place of `file`; after an error the old one stays.

    Raises:
        OSError: the disk does not take it.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp and safetensors let their owner alone read
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path, refusal: Exception) -> Iterator[None]:
    """Hold a lock file, which goes with its holder: removed at the end, and free after a kill.

    Raises:
        Exception: `refusal`: somebody else holds it.
        OSError: the disk does not take it.
    """
    with lock.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between our open and our lock its last holder may have removed it: then the next makes another.
            is_ours = os.path.samestat(os.fstat(stream.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        if not is_ours:
            raise refusal
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
