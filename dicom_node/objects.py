"""The object store: what machines have in common that share no folder, each object by the relative path of its file.

S3, or what speaks like it, through s3fs, which is imported where an object store is configured and nowhere else.
"""

import importlib.util
import ssl
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from dicom_node import tls
from dicom_node.errors import ConfigurationError, ObjectLost, ObjectsUnavailable
from dicom_node.settings import Objects

log = structlog.get_logger(__name__)

T = TypeVar("T")

_CONNECT_SECONDS = 5
_READ_SECONDS = 30  # without a byte
_RETRIES = 2  # an S3 that is well answers 500 and 503 now and then; the work itself is tried for as long as it takes
_GONE = ("NoSuchKey", "404")


class _Files(Protocol):
    """What is used of s3fs, which has no types."""

    def put_file(self, lpath: str, rpath: str) -> None: ...

    def get_file(self, rpath: str, lpath: str) -> None: ...

    def find(self, path: str) -> list[str]: ...

    def ls(self, path: str, detail: bool = True) -> list[str]: ...

    def rm(self, path: list[str]) -> None: ...


class ObjectStore:
    """One bucket, or what lies below a prefix of it; threads may share it, processes may not.

    An outage is one warning, however many calls it costs, and one line when it is over.
    """

    def __init__(self, settings: Objects, now: Callable[[], float] = time.monotonic) -> None:
        """Connect at the first need: a process that forks must not have done so before."""
        self._settings = settings
        self._prefix = settings.url.removeprefix("s3://").rstrip("/")
        self._files: _Files | None = None
        self._now = now
        self._failed_at: tuple[float, float] | None = None
        """The first and the last of the calls that failed, one after the other."""
        self._lock = threading.Lock()

    @property
    def away_seconds(self) -> float:
        """Return how long each call has failed, from the first to the last one; 0: the last one did not fail."""
        first, last = self._failed_at or (0.0, 0.0)
        return last - first

    def put(self, relative: str, path: Path) -> None:
        """Make a copy of a file safe in the object store.

        Raises:
            ObjectsUnavailable: it does not take it now.
            OSError: the file cannot be read.
        """
        self._call(relative, lambda files: files.put_file(str(path), self._name(relative)))

    def get(self, relative: str, path: Path) -> None:
        """Write the bytes of an object to a file.

        Raises:
            ObjectLost: there is none.
            ObjectsUnavailable: it does not give it now.
            OSError: the file cannot be written.
        """
        self._call(relative, lambda files: files.get_file(self._name(relative), str(path)))

    def names(self, folder: str) -> set[str]:
        """Return the names directly in a folder: of objects, and of further folders.

        Raises:
            ObjectsUnavailable: it does not say now.
        """
        try:
            found = self._call(folder, lambda files: files.ls(self._name(folder), detail=False))
        except ObjectLost:  # S3 knows no empty folder
            return set()
        return {Path(one).name for one in found}

    def remove_folder(self, folder: str) -> None:
        """Remove every object in a folder; none is as good.

        Raises:
            ObjectsUnavailable: some may be left.
        """

        def remove(files: _Files) -> None:
            if names := files.find(self._name(folder)):
                files.rm(names)

        self._call(folder, remove)

    def _name(self, relative: str) -> str:
        return f"{self._prefix}/{relative}"

    def _call(self, relative: str, ask: Callable[[_Files], T]) -> T:
        try:
            if self._files is None:
                self._files = _connect(self._settings)
            answer = ask(self._files)
        except _failures() as error:
            code = _code(error)
            if not code and isinstance(error, OSError) and _is_of_this_machine(error):
                raise
            if code in _GONE or (not code and isinstance(error, FileNotFoundError)):
                raise ObjectLost(f"{relative}: not in the object store") from error
            reason = str(error).partition("\n")[0] or type(error).__name__
            self._note(reason)
            raise ObjectsUnavailable(f"{relative}: the object store: {reason}") from error
        self._note("")
        return answer

    def _note(self, reason: str) -> None:
        with self._lock:
            was_away = self._failed_at is not None
            now = self._now()
            self._failed_at = ((self._failed_at or (now,))[0], now) if reason else None
        if reason and not was_away:
            log.warning("objects_away", url=self._settings.url, reason=reason)
        elif was_away and not reason:
            log.info("objects_back", url=self._settings.url)


def open_objects(settings: Objects) -> ObjectStore | None:
    """Return the object store of the configuration; None: there is none."""
    return ObjectStore(settings) if settings.url else None


def check(settings: Objects) -> None:
    """Say in one line what is missing on this machine for the object store; it need not run now.

    Raises:
        ConfigurationError: what.
    """
    if settings.url and importlib.util.find_spec("s3fs") is None:
        raise ConfigurationError("objects.url: needs an optional part: pip install 'echo-ai-node[s3]'")
    if settings.ca is not None:
        tls.trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), settings.ca, "objects.ca")


def try_out(settings: Objects) -> None:
    """Put an object into the object store of the configuration, and remove it again.

    Raises:
        ConfigurationError: what is wrong, in one line.
    """
    check(settings)
    store = open_objects(settings)
    if store is None:
        return
    name = f"check-config/{uuid.uuid4().hex}"
    try:
        with tempfile.NamedTemporaryFile() as nothing:
            store.put(name, Path(nothing.name))
        store.remove_folder(name)
    except ObjectsUnavailable as error:
        where = f" at {settings.endpoint}" if settings.endpoint else ""
        raise ConfigurationError(f"objects: {settings.url}{where} cannot be used: {error.__cause__}") from error


def _connect(settings: Objects) -> _Files:
    import s3fs

    files = s3fs.S3FileSystem(
        key=settings.key or None,
        secret=settings.secret.get_secret_value() or None,
        endpoint_url=settings.endpoint or None,
        skip_instance_cache=True,  # fsspec's own would hand one object to everybody, and keep the secret
        use_listings_cache=False,  # others write too
        client_kwargs={} if settings.ca is None else {"verify": str(settings.ca)},
        config_kwargs={
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _READ_SECONDS,
            "retries": {"max_attempts": _RETRIES, "mode": "standard"},
            # Trailing checksums are Amazon's alone; an instance is checked by the ledger's digest where it arrives.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    )
    files.retries = 1  # its own beside botocore's would multiply
    connected: _Files = files
    return connected


def _failures() -> tuple[type[Exception], ...]:
    """Return what s3fs raises, and what it lets through of the libraries below it."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError
    from botocore.exceptions import ClientError as Answer

    return OSError, BotoCoreError, Answer, ClientError


def _code(error: Exception) -> str:
    """Return the code of an answer of the object store (S3's words); empty: there was no answer."""
    answer = getattr(error.__cause__ or error, "response", None)
    return str(answer["Error"].get("Code", "")) if isinstance(answer, dict) and "Error" in answer else ""


def _is_of_this_machine(error: OSError) -> bool:
    """Return whether the disk failed, not the network."""
    from aiohttp import ClientError

    return error.errno is not None and not isinstance(error, ConnectionError | TimeoutError | ClientError)
