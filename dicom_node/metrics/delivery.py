"""What the process that delivers counts: attempts, and how long each study took."""

from collections.abc import Iterable
from datetime import timedelta

from prometheus_client import CollectorRegistry, Counter, Histogram

from dicom_node.ledger.outbox import Passage

_STEP_SECONDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 900, 3600)
# Close together where a study is when all goes well: a little more than a quiet period of 30 s.
_PASSAGE_SECONDS = (5, 10, 15, 20, 25, 30, 32, 34, 36, 38, 40, 45, 50, 60, 90, 120, 180, 300, 600, 1800, 3600)

OUTCOMES = ("delivered", "failed", "dead")
"""The peer has the report; it did not work and is tried again; it was given up."""


class DeliveryMetrics:
    """The counts of one process; its threads share them."""

    def __init__(self, peers: Iterable[str] = (), registry: CollectorRegistry | None = None) -> None:
        """Make them, all at 0, for the peers of the configuration."""
        attempts = Counter(
            "echo_node_delivery_attempts",
            "Attempts to deliver a report to a peer of the configuration, by outcome",
            ["peer", "outcome"],
            registry=registry,
        )
        self._attempts = {(peer, outcome): attempts.labels(peer, outcome) for peer in peers for outcome in OUTCOMES}
        self._image_to_delivered = Histogram(
            "echo_node_last_image_to_delivered_seconds",
            "From the last image of a study to the moment when the last of its peers had the report",
            buckets=_PASSAGE_SECONDS,
            registry=registry,
        )
        self._complete_to_report = Histogram(
            "echo_node_complete_to_report_seconds",
            "From the end of a study's quiet period to its report, written and recorded",
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self._report_to_delivered = Histogram(
            "echo_node_report_to_delivered_seconds",
            "From the report, written and recorded, to the moment when the last of its peers had it",
            buckets=_STEP_SECONDS,
            registry=registry,
        )

    def attempted(self, peer: str, outcome: str) -> None:
        """Count an attempt."""
        counter = self._attempts.get((peer, outcome))
        if counter is not None:
            counter.inc()

    def passed(self, passage: Passage) -> None:
        """Count a study that was delivered."""
        self._report_to_delivered.observe(_seconds(passage.delivered_at - passage.reported_at))
        if passage.last_image_at is not None:
            self._image_to_delivered.observe(_seconds(passage.delivered_at - passage.last_image_at))
            if passage.completed_at is not None:
                self._complete_to_report.observe(_seconds(passage.reported_at - passage.completed_at))


def _seconds(lasted: timedelta) -> float:
    return max(lasted.total_seconds(), 0.0)  # a clock may be set back
