"""What a scrape of the node is told: what its processes have counted, and the state of things at that moment."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from dicom_node import broker
from dicom_node.acceptor import SEATS_FILE
from dicom_node.clock import Clock, utc_now
from dicom_node.ledger import shares
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.schema import OWED, Delivery, DeliveryState, Instance, InstanceState, Study, StudyState
from dicom_node.ledger.views import count_by_state
from dicom_node.metrics.shared import SharedCollector
from dicom_node.seats import num_taken
from dicom_node.settings import Settings
from dicom_node.store import InstanceStore
from dicom_node.web.health import Pulse

_ON_THE_WAY = (StudyState.RECEIVING, StudyState.ANALYSING, StudyState.REPORTING, StudyState.DELIVERING)
_OPEN = (InstanceState.PENDING, InstanceState.LEASED, InstanceState.FAILED)


def node_registry(
    settings: Settings, sessions: Sessions, store: InstanceStore, pulse: Pulse, counts: Path | None
) -> CollectorRegistry:
    """Return what is asked at each scrape; `counts`: the folder that the node's processes count in."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(settings, sessions, store, pulse))
    if counts is not None:
        registry.register(SharedCollector(counts))
    return registry


class NodeCollector(Collector):
    """The state of the node at the moment of the scrape."""

    def __init__(
        self, settings: Settings, sessions: Sessions, store: InstanceStore, pulse: Pulse, clock: Clock = utc_now
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._pulse = pulse
        self._clock = clock

    def collect(self) -> list[Metric]:
        """Return the gauges; while the ledger is away, those that need it are missing, and one says so."""
        try:
            of_the_ledger = self._ledger()
        except SQLAlchemyError:
            of_the_ledger = []
        node = self._settings.node
        is_heard = broker.answers(self._settings.broker.url.get_secret_value())
        associations = num_taken(self._store.path(SEATS_FILE), node.max_associations)
        return [
            *of_the_ledger,
            _gauge("echo_node_ledger_up", "1: the ledger answers", bool(of_the_ledger)),
            _gauge("echo_node_broker_up", "1: the broker answers", is_heard),
            _gauge("echo_node_disk_free_bytes", "Free bytes where instances are kept", self._store.free_bytes()),
            _gauge("echo_node_disk_reserve_bytes", "node.min_free_bytes: below it nothing is taken",
                   node.min_free_bytes),
            _gauge("echo_node_objects_away_seconds", "So long the object store was asked in vain; 0: it answers",
                   self._store.objects_away_seconds),
            _gauge("echo_node_clock_tick_age_seconds", "Seconds since the node's clock last ticked", self._pulse.age),
            _gauge("echo_node_open_associations", "Associations that peers have with the node now", associations),
        ]  # fmt: skip

    def _ledger(self) -> list[Metric]:
        now = self._clock()
        with reading(self._sessions) as session:
            found = [_ages(session, now), *_deliveries(session, now), _instances(session)]
            if self._settings.objects.url:
                found.append(_unshared(session))
        studies = count_by_state(self._sessions)
        return [_by_state("echo_node_studies", "Studies in each state", StudyState, studies), *found]


def _ages(session: Session, now: datetime) -> Metric:
    ages = {
        state: _age(session.scalar(select(func.min(Study.last_received_at)).where(Study.state == state)), now)
        for state in _ON_THE_WAY
    }
    text = "How long ago the last image came of the study that has waited longest in this state; 0: there is none"
    return _by_state("echo_node_oldest_study_seconds", text, _ON_THE_WAY, ages)


def _deliveries(session: Session, now: datetime) -> Iterator[Metric]:
    found = dict(session.execute(select(Delivery.state, func.count()).group_by(Delivery.state)).tuples().all())
    yield _by_state("echo_node_deliveries", "Deliveries in each state", DeliveryState, found)
    oldest = session.scalar(select(func.min(Delivery.created_at)).where(Delivery.state.in_(OWED)))
    text = "How long ago the report was written that a peer has waited for longest; 0: there is none"
    yield _gauge("echo_node_oldest_delivery_seconds", text, _age(oldest, now))


def _instances(session: Session) -> Metric:
    # Of those alone that an index finds among millions.
    is_open = Instance.state.in_(_OPEN), Instance.is_current
    counted = select(Instance.state, func.count()).where(*is_open).group_by(Instance.state)
    found = dict(session.execute(counted).tuples().all())
    text = "Instances that wait for a worker, that a worker holds, and that were given up"
    return _by_state("echo_node_instances", text, _OPEN, found)


def _unshared(session: Session) -> Metric:
    text = "Instances that workers wait for and the object store has not got yet"
    return _gauge("echo_node_unshared_instances", text, shares.num_waiting(session))


def _by_state(name: str, text: str, states: Iterable[str], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:
        family.add_metric([str(state)], values.get(state, 0))
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _age(oldest: datetime | None, now: datetime) -> float:
    return 0.0 if oldest is None else max((now - oldest).total_seconds(), 0.0)
