"""An association that we ask for and on which the peer answers much: watched for silence, bounded in memory."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from pydicom import Dataset
from pynetdicom import _config, build_role, evt
from pynetdicom.association import Association

from dicom_node.association_server import Connection, Limits, guard
from dicom_node.budget import Budget
from dicom_node.errors import DeliveryError, Refused, RetrieveError
from dicom_node.senders import associate
from dicom_node.settings import Node, Peer

T = TypeVar("T")

_POLL_SECONDS = 0.2


class Inquiry:
    """One association; its peer is given up when nothing gets on for `patience`, however long all of it takes."""

    def __init__(self, peer: Peer, patience: timedelta, limits: Limits, on_c_store: Callable[[evt.Event], Dataset]):
        self._peer = peer
        self._patience = patience
        self._limits = limits
        self._on_c_store = on_c_store
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None
        self._heard_at = time.monotonic()
        self._is_our_turn = threading.Event()

    @property
    def handlers(self) -> list[evt.EventHandlerType]:
        """Return what pynetdicom is to call."""
        return [
            (evt.EVT_CONN_OPEN, self._on_open),
            (evt.EVT_PDU_RECV, self._on_pdu),
            (evt.EVT_DIMSE_RECV, self._on_message),
            (evt.EVT_C_STORE, self._on_store),
        ]

    def gets_on(self) -> None:
        """Start the patience anew: the peer did something."""
        self._heard_at = time.monotonic()

    def await_answer(
        self, association: Association, ask: Callable[[], T], look: Callable[[], None] = lambda: None
    ) -> T:
        """Return what `ask`, which talks to the peer in a thread of its own, returns.

        Args:
            association: of this inquiry.
            ask: sends a request and reads all answers.
            look: called several times a second meanwhile.

        Raises:
            RetrieveError: nothing got on.
        """
        association.dimse_timeout = None  # pynetdicom's is for a whole message, however large
        self.gets_on()
        with ThreadPoolExecutor(1, "inquiry") as executor:
            asked = executor.submit(ask)
            try:
                while not wait([asked], _POLL_SECONDS).done:
                    look()
                    self._check_that_it_gets_on()
                    if not association.dul.is_alive():  # it died of what it read, and wakes nobody
                        self._hang_up(association)
            except BaseException:
                self._hang_up(association)
                raise
            try:
                return asked.result()
            except RuntimeError as error:  # of pynetdicom: the association is gone
                raise RetrieveError(f"{self._peer.name}: aborted, or the connection was lost") from error

    def close(self) -> None:
        """Close the connection; pynetdicom leaves it open where its peer was quicker."""
        if self._socket is not None:
            self._socket.close()

    def _check_that_it_gets_on(self) -> None:
        silence = time.monotonic() - self._heard_at
        if silence > self._patience.total_seconds() and not self._is_our_turn.is_set():
            raise RetrieveError(
                f"{self._peer.name}: silent for {silence:.0f} s, given up; is it overloaded? --patience waits longer"
            )

    def _hang_up(self, association: Association) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)  # pynetdicom takes it for the peer's end
        if not association.dul.is_alive():
            association.dimse.msg_queue.put((None, None))  # what wakes who waits for a message

    def _on_open(self, event: evt.Event) -> None:
        self._connection = guard(event, self._limits, Budget(self._limits.max_in_flight))
        self._socket = self._connection.raw

    def _on_pdu(self, _event: evt.Event) -> None:
        self.gets_on()

    def _on_message(self, event: evt.Event) -> None:
        """Give a C-STORE without a SOP class one that no context is for: it is refused, where pynetdicom would fail."""
        message = event.message
        if message.data_set is not None and self._connection is not None:
            self._connection.complete(message.data_set)
        if type(message).__name__ == "C_STORE_RQ" and "AffectedSOPClassUID" not in message.command_set:
            message.command_set.AffectedSOPClassUID = "0.0"

    def _on_store(self, event: evt.Event) -> Dataset:
        self._is_our_turn.set()
        try:
            return self._on_c_store(event)
        finally:
            self.gets_on()
            self._is_our_turn.clear()


def take_nothing(_event: evt.Event) -> Dataset:
    """Refuse a C-STORE: nothing was asked for."""
    status = Dataset()
    status.Status = 0x0124
    return status


@contextmanager
def inquire(
    node: Node,
    peer: Peer,
    classes: Mapping[str, Sequence[str]],
    *,
    patience: timedelta,
    received: Sequence[str] = (),
    on_c_store: Callable[[evt.Event], Dataset] = take_nothing,
) -> Iterator[tuple[Inquiry, Association]]:
    """Give an association with the peer; released at the end, aborted after an error.

    Raises:
        RetrieveError: there is none, with the remedy.
    """
    _config.LOG_HANDLER_LEVEL = "none"  # its handlers are slow, and fail at messages that lack something
    inquiry = Inquiry(peer, patience, Limits.of(node), on_c_store)
    try:
        association = _associated(node, peer, classes, received, inquiry)
        try:
            yield inquiry, association
        except BaseException:
            association.abort()
            raise
        association.release()
    finally:
        inquiry.close()


def _associated(
    node: Node, peer: Peer, classes: Mapping[str, Sequence[str]], received: Sequence[str], inquiry: Inquiry
) -> Association:
    try:
        roles = [build_role(uid, scp_role=True) for uid in received]  # the peer sends them to us (PS3.7 D.3.3.4)
        return associate(node, peer, classes, roles=roles, handlers=inquiry.handlers, max_pdu=node.max_pdu)
    except Refused as error:
        raise RetrieveError(
            f"{peer.name}: {error}; it must know the caller {node.ae_title}, under peers.ae_title {peer.ae_title}"
        ) from error
    except DeliveryError as error:
        raise RetrieveError(f"{peer.name}: {error}; try dicom-node echo {peer.name}") from error
    except OSError as error:  # of the resolver
        raise RetrieveError(f"{peer.name}: peers.host {peer.host}: {error.strerror or error}") from error
