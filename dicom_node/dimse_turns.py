"""Requests of ours on associations that pynetdicom serves; what the node knows of its insides for that is here.

`Association.send_n_event_report` takes the next message that comes for its answer, and aborts when that is the peer's
next request: a scanner that goes on sending images while it hears of the last ones. Two threads that send may also mix
the fragments of their messages. And `Association.release` may wait for ever when a peer's N-EVENT-REPORT has just been
served. Here a request is one turn of sending, its answer is recognised by its Message ID among all that arrives, and
a peer's N-EVENT-REPORT is served by the thread that asked for it. What it leans on, none of it public, is held by
tests/node/test_scp_seams.py.
"""

import threading
import time
from dataclasses import dataclass
from io import BytesIO
from queue import Empty, SimpleQueue
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT, DimsePrimitiveType

T = TypeVar("T")

_LOOK_SECONDS = 0.1  # whether the association is there still
_ASKED: Final = "N_EVENT_REPORT_RQ"
_ANSWERS = frozenset({"N_EVENT_REPORT_RSP", "N_ACTION_RSP"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """What a peer sent."""

    command: Dataset
    content: bytes
    """The data set, empty if there is none."""
    context_id: int

    @property
    def is_request(self) -> bool:
        """Return whether it wants an answer."""
        return "MessageID" in self.command


class Besides:
    """Requests on associations that other threads serve; one for all associations of a server.

    `take_turns` once for an association, in the thread that serves it; `heard` is its handler of EVT_DIMSE_RECV.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: WeakKeyDictionary[Association, dict[int, SimpleQueue[Dataset]]] = WeakKeyDictionary()

    def take_turns(self, association: Association) -> None:
        """Let the threads that send on it send one message after the other."""
        with self._guard:
            if association in self._waiting:
                return
            self._waiting[association] = {}
        turn, send = threading.Lock(), association.dimse.send_msg

        def send_in_turn(primitive: DimsePrimitiveType, context_id: int) -> None:
            with turn:
                send(primitive, context_id)

        association.dimse.send_msg = send_in_turn  # type: ignore[method-assign]  # where all of pynetdicom sends

    def ask(self, association: Association, request: N_EVENT_REPORT, context_id: int, seconds: float) -> int | None:
        """Send a request and return the status of its answer; None: there is none in time."""
        answers: SimpleQueue[Dataset] = SimpleQueue()
        assert request.MessageID is not None
        waiting = self._waiting[association]
        waiting[request.MessageID] = answers
        try:
            association.dimse.send_msg(request, context_id)
            answer = _next(answers, association, seconds)
            return None if answer is None else int(answer.get("Status", 0x0110))
        finally:
            del waiting[request.MessageID]

    def heard(self, event: evt.Event) -> None:
        """Hand an answer on to whoever waits for it."""
        message = event.message
        if type(message).__name__ not in _ANSWERS:
            return
        answers = self._waiting.get(event.assoc, {}).get(message.command_set.get("MessageIDBeingRespondedTo"))
        if answers is not None:
            answers.put(message.command_set)


class Conversation:
    """An association of ours on which this thread alone asks and answers; `heard` is its handler of EVT_DIMSE_RECV."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[Message] = SimpleQueue()

    def heard(self, event: evt.Event) -> None:
        """Keep what this thread is to see, and keep it from pynetdicom, which would serve it in a thread of its own."""
        message = event.message
        kind = type(message).__name__
        if kind != _ASKED and kind not in _ANSWERS:
            return
        command = Dataset()
        command.update(message.command_set)
        content = b"" if message.data_set is None else message.data_set.getvalue()
        assert message.context_id is not None
        self._inbox.put(Message(command=command, content=content, context_id=message.context_id))
        if kind == _ASKED and "AffectedSOPClassUID" in message.command_set:
            del message.command_set.AffectedSOPClassUID  # then it is no valid request, and is left alone

    def ask(self, association: Association, request: N_ACTION, context_id: int) -> None:
        """Send a request; its answer is among what is heard."""
        association.dimse.send_msg(request, context_id)

    def answer(self, association: Association, message: Message, status: Dataset) -> None:
        """Answer a peer's N-EVENT-REPORT."""
        response = N_EVENT_REPORT()
        response.MessageIDBeingRespondedTo = message.command.MessageID
        for keyword in ("AffectedSOPClassUID", "AffectedSOPInstanceUID", "EventTypeID"):
            if message.command.get(keyword) is not None:
                setattr(response, keyword, message.command[keyword].value)
        response.Status = status.Status
        response.ErrorComment = status.get("ErrorComment")
        association.dimse.send_msg(response, message.context_id)

    def next(self, association: Association, seconds: float) -> Message | None:
        """Return what the peer said next; None: nothing in time, or the association has ended."""
        return _next(self._inbox, association, seconds)


def event_report(sop_class: str, instance: str, event_type: int, message_id: int, content: BytesIO) -> N_EVENT_REPORT:
    """Return an N-EVENT-REPORT request."""
    request = N_EVENT_REPORT()
    request.MessageID = message_id
    request.AffectedSOPClassUID = sop_class
    request.AffectedSOPInstanceUID = instance
    request.EventTypeID = event_type
    request.EventInformation = content
    return request


def action(sop_class: str, instance: str, action_type: int, message_id: int, content: BytesIO) -> N_ACTION:
    """Return an N-ACTION request."""
    request = N_ACTION()
    request.MessageID = message_id
    request.RequestedSOPClassUID = sop_class
    request.RequestedSOPInstanceUID = instance
    request.ActionTypeID = action_type
    request.ActionInformation = content
    return request


def _next(queue: SimpleQueue[T], association: Association, seconds: float) -> T | None:
    deadline = time.monotonic() + seconds
    while True:
        is_over = not association.is_established or time.monotonic() >= deadline
        try:
            return queue.get(timeout=0.001 if is_over else _LOOK_SECONDS)
        except Empty:
            if is_over:
                return None
