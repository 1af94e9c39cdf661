"""What a worker derives from the node's configuration: its limits, its device and where its ensemble lies."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from dicom_node.settings import EnsembleSection, Worker
from model.ensemble import SHIPPED


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long things may take; each wait of the worker has a deadline."""

    lease: timedelta = timedelta(seconds=6)
    """A worker that is not heard of for this long has lost its loops."""
    heartbeat: timedelta = timedelta(seconds=1.5)
    """How often a living worker renews its leases."""
    loop: timedelta = timedelta(seconds=120)
    """A loop that takes longer is not renewed any more: it counts as hung."""
    outage: timedelta = timedelta(seconds=60)
    """So long an answer waits for a ledger that cannot be written, before it is given up and worked out again."""
    put_off: timedelta = timedelta(seconds=45)
    """So much later than usual a report is tried again that the disk did not take."""
    budget: timedelta = timedelta(seconds=60)
    """After this long a task ends between two batches and rings for itself, so that no study starves another."""
    max_batch: int = 8
    """Loops claimed at a time."""

    @property
    def task(self) -> timedelta:
        """Return after how long the pool kills a task's process: the backstop for a decoder that never returns."""
        return self.budget + self.loop * (self.max_batch + 1)

    @property
    def visibility(self) -> timedelta:
        """Return after how long the broker may give an unacknowledged message to another worker."""
        return self.task + timedelta(seconds=60)


def limits(section: Worker) -> Limits:
    """Return the limits that the configuration asks for."""
    return Limits(loop=timedelta(seconds=section.loop_seconds), max_batch=section.max_batch)


def ensemble_path(section: EnsembleSection) -> Path:
    """Return the folder of the configured ensemble."""
    return Path(section.path).expanduser().absolute() if section.path else SHIPPED
