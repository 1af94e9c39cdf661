"""A node's receiving end in this process: the real server on a port of its own, with any intake behind it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pynetdicom import _config, evt

from dicom_node.acceptor import Acceptor, listen, start_acceptor
from dicom_node.association_server import Limits
from dicom_node.audit import Audit, unaudited
from dicom_node.intake import IntakeKind, IntakeOutcome, Received
from dicom_node.metrics.acceptor import AcceptorMetrics
from dicom_node.scp import Receive
from dicom_node.settings import settings_from
from dicom_node.store import InstanceStore


@dataclass(kw_only=True)
class Inbox:
    """An intake that remembers what it got, or fails as a test says."""

    error: Exception | None = None
    received: list[Received] = field(default_factory=list)

    def receive(self, received: Received) -> IntakeOutcome:
        """Keep an instance in memory."""
        if self.error is not None:
            raise self.error
        self.received.append(received)
        return IntakeOutcome(kind=IntakeKind.KEPT, study_id=1)


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """A running server."""

    port: int
    store: InstanceStore
    acceptor: Acceptor

    @property
    def quarantined(self) -> list[bytes]:
        """Return the content of what was set aside."""
        return [path.read_bytes() for path in sorted(self.store.path("quarantine").iterdir())]


@contextmanager
def running_receiver(
    folder: Path,
    receive: Receive,
    *,
    node: Mapping[str, Any] | None = None,
    peers: tuple[Mapping[str, Any], ...] = (),
    limits: Limits | None = None,
    more_handlers: Sequence[evt.EventHandlerType] = (),
    audit: Audit = unaudited,
    metrics: AcceptorMetrics | None = None,
) -> Iterator[Receiver]:
    """Run a server in this process until the block ends."""
    settings = settings_from({"node": {"data_dir": str(folder), "min_free_bytes": 0, **(node or {})}, "peers": peers})
    store = InstanceStore(folder, min_free_bytes=settings.node.min_free_bytes)
    before = (_config.UNRESTRICTED_STORAGE_SERVICE, _config.LOG_HANDLER_LEVEL)
    listening = listen("127.0.0.1", 0)
    port = int(listening.getsockname()[1])
    acceptor = start_acceptor(
        listening, settings, receive, store, limits, more_handlers=more_handlers, audit=audit, metrics=metrics
    )
    try:
        yield Receiver(port=port, store=store, acceptor=acceptor)
    finally:
        acceptor.close()
        # pynetdicom's switches are the process's: other tests run a PACS in it.
        _config.UNRESTRICTED_STORAGE_SERVICE, _config.LOG_HANDLER_LEVEL = before
