"""What the node leans on inside pynetdicom: a release that changes it must fail here, not at a hospital."""

import inspect
from importlib.metadata import version
from io import BytesIO

import pynetdicom.acse
import pynetdicom.association
import pynetdicom.dimse
import pynetdicom.dimse_messages
import pynetdicom.dul
import pynetdicom.fsm
import pynetdicom.service_class
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer


def test_pynetdicom_is_the_release_whose_insides_were_read() -> None:
    """Read association_server.py and its sources again before this line is changed."""
    assert version("pynetdicom") == "3.0.4"


def test_a_pdu_is_read_by_its_header_and_then_by_its_length() -> None:
    """`Connection.recv` takes the second call for the length that the peer claims."""
    source = inspect.getsource(pynetdicom.dul.DULServiceProvider._read_pdu_data)

    assert source.count("self.socket.recv(") == 2
    assert source.index("self.socket.recv(6)") < source.index("self.socket.recv(pdu_length)")
    assert list(inspect.signature(AssociationSocket.recv).parameters) == ["self", "nr_bytes"]


def test_a_data_set_grows_in_the_message_that_is_being_received() -> None:
    """Its length so far is what `Connection` adds up."""
    association = Association(AE(), "acceptor")

    assert association.dimse.message is None
    assert isinstance(pynetdicom.dimse_messages.DIMSEMessage().data_set, BytesIO)


def test_a_thread_that_waits_for_a_request_ends_when_it_gets_none() -> None:
    """So it is woken when the connection is gone."""
    source = inspect.getsource(Association.run_reactor)

    assert "primitive = self.dul.receive_pdu(wait=True, timeout=self.acse_timeout)" in source
    assert "if primitive is None:" in source
    assert association_has("_kill", "dul", "requestor", "is_established", "rejected_contexts", "accepted_contexts")
    assert Association(AE(), "acceptor").requestor.primitive is None


def test_the_server_asks_before_it_serves_and_knows_its_associations() -> None:
    """Overridden or read by `AssociationServer`."""
    for name in ("server_bind", "server_activate", "server_close", "service_actions", "verify_request", "get_request"):
        assert callable(getattr(ThreadedAssociationServer, name))
    assert "self.process_request_thread" in inspect.getsource(ThreadedAssociationServer.process_request)
    assert isinstance(ThreadedAssociationServer.active_associations, property)
    assert callable(ThreadedAssociationServer._threads.join)
    assert AE()._servers == []


def test_what_tls_has_buffered_is_seen_and_what_waits_is_read_by_the_thread_that_looks() -> None:
    """So a record that holds several PDUs is read to its end, and TLS is never used by two threads at once."""
    assert "self.socket.pending()" in inspect.getsource(AssociationSocket.ready.fget)  # type: ignore[attr-defined]
    source = inspect.getsource(AssociationSocket.connect)
    assert source.index("self.socket.settimeout(None)") < source.index("evt.EVT_CONN_OPEN")


def test_the_loops_of_both_threads_pass_where_they_are_made_to_wait() -> None:
    """`upper_layer` takes these places, on the association that it quickens alone."""
    reading = inspect.getsource(pynetdicom.dul.DULServiceProvider.run_reactor)
    serving = inspect.getsource(Association._run_reactor)

    assert "time.sleep(self._run_loop_delay)" in reading
    assert reading.index("self._process_recv_primitive()") < reading.index("self._is_transport_event()")
    assert "self._idle_timer.restart()" in reading
    assert serving.index("self._reactor_checkpoint.wait()") < serving.index("self.dimse.get_msg(block=False)")
    assert "self._serve_request(msg" in serving
    assert "self._run_reactor()" in inspect.getsource(Association.run_reactor)
    assert association_has("_reactor_checkpoint", "_accepted_cx", "_serve_request")


def test_what_is_read_and_sent_goes_through_what_the_node_puts_there() -> None:
    """The two queues, the state machine's own way to send, and what is done when a message is whole."""
    received = inspect.getsource(pynetdicom.dimse.DIMSEServiceProvider.receive_primitive)
    sent = inspect.getsource(pynetdicom.fsm.DT_1)

    assert "self.msg_queue.put((context_id, " in received
    assert "dul._send(P_DATA_TF(primitive))" in sent
    assert "dul.assoc.dimse.receive_primitive(" in inspect.getsource(pynetdicom.fsm.DT_2)
    assert "dul.to_user_queue.put(" in inspect.getsource(pynetdicom.fsm.AR_2)
    assert "self.to_provider_queue.put(primitive)" in inspect.getsource(pynetdicom.dul.DULServiceProvider.send_pdu)
    assert "while self.is_alive():" in inspect.getsource(pynetdicom.dul.DULServiceProvider.stop_dul)


def test_a_message_that_was_read_elsewhere_can_be_handed_over_from_its_begin() -> None:
    """`store_turns` has its own where none has begun, and gives what it has read back as fragments."""
    received = inspect.getsource(pynetdicom.dimse.DIMSEServiceProvider.receive_primitive)
    decoded = inspect.getsource(pynetdicom.dimse_messages.DIMSEMessage.decode_msg)

    assert "if self.message is None:" in received
    assert "cast(BytesIO, self.data_set).write(data[1:])" in decoded
    assert association_has("_accepted_cx", "dimse", "abort")
    assert callable(pynetdicom.service_class.StorageServiceClass.validate_status)


def test_storage_without_restriction_is_a_switch_of_the_process() -> None:
    """It is read at each negotiation and each C-STORE; classes beyond pynetdicom's list are served by it alone."""
    assert _config.UNRESTRICTED_STORAGE_SERVICE in (False, True)
    assert "_config.UNRESTRICTED_STORAGE_SERVICE" in inspect.getsource(pynetdicom.acse)
    assert "_config.UNRESTRICTED_STORAGE_SERVICE" in inspect.getsource(Association._serve_request)


def test_all_that_is_sent_goes_one_way_and_all_that_arrives_is_heard_first() -> None:
    """`dimse_turns` gives each message its turn there, and takes what is not pynetdicom's before it is looked at."""
    received = inspect.getsource(pynetdicom.dimse.DIMSEServiceProvider.receive_primitive)

    assert "self.dimse.send_msg(rsp, cx_id)" in inspect.getsource(pynetdicom.service_class.ServiceClass._n_action_scp)
    assert received.index("EVT_DIMSE_RECV") < received.index("message_to_primitive")
    assert "isinstance(d_primitive, N_EVENT_REPORT) and d_primitive.is_valid_request" in received
    assert not N_EVENT_REPORT().is_valid_request
    assert "if not msg.is_valid_request:" in inspect.getsource(Association._serve_request)


def association_has(*names: str) -> bool:
    """Return whether an association has all these attributes."""
    association = Association(AE(), "acceptor")
    return all(hasattr(association, name) for name in names)
