"""What the node leans on inside pynetdicom: a release that changes it must fail here, not at a hospital."""

import inspect
from importlib.metadata import version
from io import BytesIO

import pynetdicom.acse
import pynetdicom.association
import pynetdicom.dimse
import pynetdicom.dimse_messages
import pynetdicom.dul
from pynetdicom import AE, _config
from pynetdicom.association import Association
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
    for name in ("server_bind", "server_activate", "server_close", "service_actions", "verify_request"):
        assert callable(getattr(ThreadedAssociationServer, name))
    assert isinstance(ThreadedAssociationServer.active_associations, property)
    assert callable(ThreadedAssociationServer._threads.join)
    assert AE()._servers == []


def test_storage_without_restriction_is_a_switch_of_the_process() -> None:
    """It is read at each negotiation and each C-STORE; classes beyond pynetdicom's list are served by it alone."""
    assert _config.UNRESTRICTED_STORAGE_SERVICE in (False, True)
    assert "_config.UNRESTRICTED_STORAGE_SERVICE" in inspect.getsource(pynetdicom.acse)
    assert "_config.UNRESTRICTED_STORAGE_SERVICE" in inspect.getsource(Association._serve_request)


def association_has(*names: str) -> bool:
    """Return whether an association has all these attributes."""
    association = Association(AE(), "acceptor")
    return all(hasattr(association, name) for name in names)
