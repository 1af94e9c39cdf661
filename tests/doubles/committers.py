"""Both ends of storage commitment as other makers play them: a scanner that asks, a PACS that is asked.

They use pynetdicom's own services, which share nothing with the node's.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association

COMMITMENT = "1.2.840.10008.1.20.1"
INSTANCE = "1.2.840.10008.1.20.1.1"
US_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.3.1"
DEADLINE = 30.0

Wanted = Sequence[tuple[str, str]]
"""SOP class and SOP instance of each."""


def asked_for(wanted: Wanted, transaction: str) -> Dataset:
    """Return an Action Information."""
    content = Dataset()
    content.TransactionUID = transaction
    content.ReferencedSOPSequence = [item(*one) for one in wanted]
    return content


def item(sop_class: str, sop_instance: str, reason: int | None = None) -> Dataset:
    """Return an item of a sequence of references."""
    one = Dataset()
    one.ReferencedSOPClassUID = sop_class
    one.ReferencedSOPInstanceUID = sop_instance
    if reason is not None:
        one.FailureReason = reason
    return one


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a scanner heard in an N-EVENT-REPORT."""

    event_type: int
    transaction: str
    committed: list[str]
    failed: dict[str, int]
    is_on_own_server: bool


@dataclass(kw_only=True)
class Cart:
    """A scanner."""

    node_port: int
    ae_title: str = "CART"
    port: int = 0
    """Where it listens for reports."""
    answers: list[int] = field(default_factory=list)
    """Its statuses for the next reports; then Success."""
    is_silent: bool = False
    """Whether it answers no report on the association on which it asked."""
    thinks: float = 0.0
    """Seconds before each of its answers."""
    told: "SimpleQueue[Told]" = field(default_factory=SimpleQueue)
    threads: list[threading.Thread] = field(default_factory=list)

    @contextmanager
    def association(self, *classes: str) -> Iterator[Association]:
        """Open an association with the node, for commitment and these storage classes."""
        ae = AE(ae_title=self.ae_title)
        ae.dimse_timeout = DEADLINE
        for sop_class in (COMMITMENT, *classes):
            ae.add_requested_context(sop_class)
        heard = evt.EVT_N_EVENT_REPORT, lambda event: self.on_event(event, is_on_own_server=False)
        opened = ae.associate("127.0.0.1", self.node_port, ae_title="ECHONODE", evt_handlers=[heard])
        assert opened.is_established
        yield opened
        for thread in self.threads:
            thread.join(DEADLINE)  # pynetdicom's release may hang while a report is served
        opened.release()

    def ask(self, association: Association, wanted: Wanted, transaction: str | None = None) -> tuple[int, str]:
        """Ask for commitment; return status and Error Comment of the answer."""
        content = asked_for(wanted, transaction or str(generate_uid()))
        return self.send(association, content)

    def send(
        self, association: Association, content: Dataset | None, action: int = 1, instance: str = INSTANCE
    ) -> tuple[int, str]:
        """Send any N-ACTION; return status and Error Comment of the answer."""
        status, _ = association.send_n_action(content, action, COMMITMENT, instance)
        return int(status.Status), str(status.get("ErrorComment") or "")

    def on_event(self, event: evt.Event, *, is_on_own_server: bool) -> tuple[int, None]:
        """Answer a report."""
        self.threads.append(threading.current_thread())
        if self.is_silent and not is_on_own_server:
            event.assoc.join(DEADLINE)
        time.sleep(self.thinks)
        content = event.event_information
        heard = Told(
            event_type=event.event_type,
            transaction=content.TransactionUID,
            committed=[one.ReferencedSOPInstanceUID for one in content.get("ReferencedSOPSequence", ())],
            failed={one.ReferencedSOPInstanceUID: one.FailureReason for one in content.get("FailedSOPSequence", ())},
            is_on_own_server=is_on_own_server,
        )
        status = self.answers.pop(0) if self.answers else 0x0000
        self.told.put(heard)
        return status, None

    def hear(self) -> Told:
        """Return the next report."""
        return self.told.get(timeout=DEADLINE)

    def has_heard_nothing(self) -> bool:
        """Return whether no report has come."""
        try:
            self.told.get_nowait()
        except Empty:
            return True
        return False


@contextmanager
def listening(cart: Cart, *, roles: tuple[bool, bool] | None = (True, True), port: int = 0) -> Iterator[Cart]:
    """Let a scanner take reports on a port of its own; with these roles (SCU, SCP) granted, or None: unanswered."""
    ae = AE(ae_title=cart.ae_title)
    scu, scp = (None, None) if roles is None else roles
    ae.add_supported_context(COMMITMENT, scu_role=scu, scp_role=scp)
    heard = evt.EVT_N_EVENT_REPORT, lambda event: cart.on_event(event, is_on_own_server=True)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[heard])
    cart.port = server.server_address[1]
    try:
        yield cart
    finally:
        server.shutdown()
        server.server_close()


Judge = Callable[[str], int | None]
"""Says why an instance is not committed to; None: it is."""


@dataclass(kw_only=True)
class Archive:
    """A PACS that is asked."""

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    """Its answers to the next requests; then Success."""
    asked: list[Dataset] = field(default_factory=list)
    reports_besides: bool = False
    """Whether it reports on the association on which it was asked."""
    judge: Judge = lambda _uid: None
    answers: "SimpleQueue[int]" = field(default_factory=SimpleQueue)
    """What the node said to its reports."""
    after_answer: list[tuple[Association, Dataset]] = field(default_factory=list)

    def on_action(self, event: evt.Event) -> tuple[int, None]:
        """Answer a request."""
        status = self.statuses.pop(0) if self.statuses else 0x0000
        if status == 0x0000:
            self.asked.append(event.action_information)
            self.after_answer.append((event.assoc, event.action_information))
        return status, None

    def on_sent(self, event: evt.Event) -> None:
        """Report on the same association, in a thread: this one serves it."""
        if type(event.message).__name__ == "N_ACTION_RSP" and self.reports_besides and self.after_answer:
            association, asked = self.after_answer.pop()
            threading.Thread(target=self._report_besides, args=(association, asked)).start()

    def _report_besides(self, association: Association, asked: Dataset) -> None:
        self.answers.put(self._send(association, asked))

    def report(
        self, node_port: int, asked: Dataset | None = None, *, with_role: bool = True, event_type: int | None = None
    ) -> int:
        """Report on an association of its own what it was last asked; return the node's status."""
        ae = AE(ae_title="PACS")
        ae.add_requested_context(COMMITMENT)
        roles: list[Any] = [build_role(COMMITMENT, scp_role=True)] if with_role else []
        association = ae.associate("127.0.0.1", node_port, ae_title="ECHONODE", ext_neg=roles)
        assert association.is_established
        if with_role:
            assert [one.as_scp for one in association.accepted_contexts] == [True]
        status = self._send(association, asked or self.asked[-1], event_type)
        association.release()
        return status

    def _send(self, association: Association, asked: Dataset, event_type: int | None = None) -> int:
        content = Dataset()
        content.TransactionUID = asked.TransactionUID
        judged = [(one, self.judge(one.ReferencedSOPInstanceUID)) for one in asked.ReferencedSOPSequence]
        content.ReferencedSOPSequence = [one for one, reason in judged if reason is None]
        content.FailedSOPSequence = [
            item(one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID, reason)
            for one, reason in judged
            if reason is not None
        ]
        kind = event_type or (2 if content.FailedSOPSequence else 1)
        status, _ = association.send_n_event_report(content, kind, COMMITMENT, INSTANCE)
        return int(status.Status)


@contextmanager
def running_archive(*statuses: int, reports_besides: bool = False) -> Iterator[Archive]:
    """Run a PACS that is asked, until the block ends."""
    archive = Archive(statuses=list(statuses), reports_besides=reports_besides)
    ae = AE(ae_title="PACS")
    ae.add_supported_context(COMMITMENT)
    handlers: list[Any] = [(evt.EVT_N_ACTION, archive.on_action), (evt.EVT_DIMSE_SENT, archive.on_sent)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    archive.port = server.server_address[1]
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
