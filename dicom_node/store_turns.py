"""A C-STORE from its command set to its answer, in the thread that reads it, without pynetdicom's messages.

What is not of the usual shape, or would not be served next, is handed over to pynetdicom, as if nothing had been read.
What that leans on, none of it public, tests/node/test_scp_seams.py holds.
"""

import struct
import threading
from collections.abc import Callable
from io import BytesIO

import structlog
from pydicom import Dataset
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.service_class import StorageServiceClass

from dicom_node.landing import Landing
from dicom_node.services import STORAGE_COMMITMENT, VERIFICATION
from dicom_node.store_requests import StoreRequest, Success, store_request

log = structlog.get_logger(__name__)

FRAGMENT = struct.Struct(">LBB")
"""PS3.8 9.3.5.1 and E.2: length, presentation context, message control header."""

IS_COMMAND, IS_LAST = 0x01, 0x02
"""Message control header, PS3.8 E.2."""

_UNLIKE = 1024  # bytes that one data set may be longer than the one before, and often is: names, times
_SMALL_PDUS = range(1, 1024)  # bytes: a peer whose PDUs do not hold a command set; 0 is without limit

Store = Callable[[Association, StoreRequest, str, bytearray], Dataset | None]
"""Keeps what came in a transfer syntax and returns the status of the answer; None: Success."""

Complete = Callable[[Landing], None]
"""Notes that a data set has come, whole."""


class StoreTurns:
    """The C-STORE requests of one association."""

    def __init__(self, association: Association, serving: threading.Lock, store: Store, complete: Complete) -> None:
        """`serving` is held while a request of the association is served."""
        self._association, self._dimse = association, association.dimse
        self._serving, self._store, self._complete = serving, store, complete
        self._coming: _Coming | None = None
        self._num_last = 0
        """Bytes of the last data set."""

    def begin(self, context_id: int, command: memoryview) -> bool:
        """Return whether a message with this command set is taken here: then its fragments are to be, by `take`."""
        if self._dimse.message is not None or not self._is_storage(context_id):
            return False
        encoded = bytes(command)
        request = store_request(context_id, encoded)
        if request is None:
            return False
        self._coming = _Coming(request, encoded, self._num_last + _UNLIKE)
        self._dimse.message = self._coming  # type: ignore[assignment]  # where the length so far is looked up
        return True

    @property
    def is_coming(self) -> bool:
        """Return whether a message is taken here whose data set is not whole yet."""
        return self._coming is not None

    def read_pdu(self, length: int, read: Callable[[memoryview], None]) -> bytes:
        """Read the rest of a PDU, and take it, if it is one fragment of the data set that comes; else return it.

        Raises:
            OSError: `read`, which fills what it is given, could not.
        """
        coming, control = self._coming, 0
        assert coming is not None

        def is_fragment(ahead: bytes) -> bool:
            nonlocal control
            size, _, control = FRAGMENT.unpack(ahead)
            return size + 4 == length and not control & IS_COMMAND

        other = coming.data_set.read_pdu(length, read, is_fragment)
        if not other and control & IS_LAST:
            self._end(coming)
        return other

    def take(self, control: int, fragment: memoryview) -> bool:
        """Return whether this fragment is of a message that is taken here; its last one gets it served."""
        coming = self._coming
        if coming is None:
            return False
        if control & IS_COMMAND:  # in the middle of a data set
            self._hand_over(coming)
            return False
        coming.data_set.write(fragment)
        if control & IS_LAST:
            self._end(coming)
        return True

    def _is_storage(self, context_id: int) -> bool:
        context = self._association._accepted_cx.get(context_id)
        return context is not None and str(context.abstract_syntax) not in (STORAGE_COMMITMENT, VERIFICATION)

    def _end(self, coming: "_Coming") -> None:
        association = self._association
        is_next = association.is_established and self._dimse.msg_queue.empty() and coming.data_set.tell() > 0
        if not is_next or not self._serving.acquire(blocking=False):
            self._hand_over(coming)
            self._dimse.receive_primitive(p_data(coming.request.context_id, IS_LAST, b""))
            return
        try:
            self._coming = self._dimse.message = None
            self._num_last = coming.data_set.tell()
            self._complete(coming.data_set)
            self._serve(coming.request, coming.data_set)
        finally:
            self._serving.release()

    def _serve(self, request: StoreRequest, content: Landing) -> None:
        association = self._association
        (transfer_syntax,) = association._accepted_cx[request.context_id].transfer_syntax
        try:
            status = self._store(association, request, str(transfer_syntax), content.take())
        except Exception:
            log.exception("store_not_answered")
            association.abort(block=False)  # it would wait for this thread
            return
        if not association.is_established:
            return
        if status is None and self._dimse.maximum_pdu_size not in _SMALL_PDUS:
            self._dimse.send_msg(Success(request=request), request.context_id)  # type: ignore[arg-type]  # see upper_layer
        else:
            self._dimse.send_msg(self._response(request, status), request.context_id)

    def _response(self, request: StoreRequest, status: Dataset | None) -> C_STORE:
        response = C_STORE()
        response.MessageIDBeingRespondedTo = request.message_id
        response.AffectedSOPClassUID = request.sop_class
        response.AffectedSOPInstanceUID = request.sop_instance
        answer = StorageServiceClass(self._association).validate_status(0x0000 if status is None else status, response)
        assert isinstance(answer, C_STORE)
        return answer

    def _hand_over(self, coming: "_Coming") -> None:
        """Let pynetdicom go on with a message, of which it gets all that has come."""
        self._coming = self._dimse.message = None
        self._dimse.receive_primitive(p_data(coming.request.context_id, IS_COMMAND | IS_LAST, coming.command))
        message = self._dimse.message
        assert message is not None
        assert message.data_set is not None
        message.data_set.write(coming.data_set.take())


class _Coming:
    """A message of which the command set has come, and some of its data set."""

    encoded_command_set = BytesIO()  # it is looked at for its length alone, and does not grow any more

    def __init__(self, request: StoreRequest, command: bytes, expected: int) -> None:
        self.request, self.command = request, command
        self.data_set = Landing(expected)


def p_data(context_id: int, control: int, fragment: bytes | memoryview) -> P_DATA:
    """Return a fragment of a message as pynetdicom has it."""
    primitive = P_DATA()
    primitive.presentation_data_value_list.append((context_id, bytes((control,)) + fragment))
    return primitive
