"""DICOM TLS: which TLS the node speaks, what it shows, whom it believes.

The profile is BCP 195 RFC 8996, 9325 (PS3.15 B.12): TLS 1.2 with ephemeral elliptic curves and AES-GCM, or TLS 1.3;
nothing older, no compression, no renegotiation.
"""

import contextlib
import hashlib
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from dicom_node.errors import ConfigurationError, check_all
from dicom_node.settings import Peer, Settings, Tls

log = structlog.get_logger(__name__)

SUITES = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
)
"""Cipher suites of TLS 1.2, as OpenSSL calls them (RFC 9325 section 4.2); those of TLS 1.3 are all good."""

_STRENGTH = "@SECLEVEL=2"  # RSA from 2048 bits, no SHA-1: 112 bits (RFC 9325 section 4.5)
_SOON = timedelta(days=30)
_NO_PASSWORD = ""  # OpenSSL would ask for it at the terminal
_IN_WORDS = {
    "WRONG_VERSION_NUMBER": "the other side does not speak TLS",
    "HTTP_REQUEST": "the other side speaks HTTP",
    "UNSUPPORTED_PROTOCOL": "the other side offers no TLS 1.2 or 1.3",
    "NO_SHARED_CIPHER": "the other side offers no cipher suite of the profile",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the other side shows no certificate",
}


class ClientContext(ssl.SSLContext):
    """What one association with a peer is opened with; it keeps what went wrong, which pynetdicom only logs."""

    failure: str | None = None
    """Why TLS failed, in words."""
    expected_sha256: str = ""
    """The one certificate that will do; empty: any that a trusted authority signed for the peer's host."""


class _ClientSocket(ssl.SSLSocket):
    """Notes in its context why TLS failed, and lets no byte of DICOM go to another than the expected."""

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands and look at the certificate."""
        with self._noted(OSError):
            super().do_handshake(block)
        if self._ours.expected_sha256 not in ("", sha256(self)):
            self._ours.failure = "the peer shows another certificate than its certificate_sha256"
            raise ssl.SSLError(self._ours.failure)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Receive; in TLS 1.3 a server may refuse our certificate after the handshake."""
        with self._noted(ssl.SSLError):
            return super().recv(buflen, flags)

    def shutdown(self, how: int) -> None:
        """Shut down; that the other side did so first is no mistake, and pynetdicom would not close after one."""
        with contextlib.suppress(OSError):
            super().shutdown(how)

    @property
    def _ours(self) -> ClientContext:
        assert isinstance(self.context, ClientContext)
        return self.context

    @contextlib.contextmanager
    def _noted(self, kind: type[OSError]) -> Iterator[None]:
        try:
            yield
        except kind as error:
            if self._ours.failure is None:
                self._ours.failure = reason(error)
            raise


def server_context(tls: Tls) -> ssl.SSLContext:
    """Return what the node's port speaks; with `tls.ca` it asks every peer for a certificate.

    Raises:
        ConfigurationError: a file is missing, or not what it should be.
    """
    context = _with_profile(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.num_tickets = 0  # another process may get the peer's next association
    _show(context, tls)
    if tls.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        trust(context, tls.ca, "node.tls.ca")
    return context


def client_context(tls: Tls | None, peer: Peer) -> ClientContext:
    """Return what an association with a peer is opened with.

    The peer's certificate must be signed by `tls.ca` (without it: by an authority that the system trusts) and name the
    peer's host, or be the one that the configuration names.

    Raises:
        ConfigurationError: a file is missing, or not what it should be.
    """
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    _with_profile(context)
    context.sslsocket_class = _ClientSocket
    context.expected_sha256 = peer.certificate_sha256
    context.check_hostname = not peer.certificate_sha256
    if tls is not None:
        _show(context, tls)
    if tls is not None and tls.ca is not None:
        trust(context, tls.ca, "node.tls.ca")
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def check(settings: Settings, now: datetime) -> None:
    """Say what is wrong with the files of [node.tls]; warn of a certificate that ends soon.

    Raises:
        ConfigurationError: the certificate, its key or the authorities cannot be used, or not any more; one a line.
    """
    tls = settings.node.tls
    if tls is None:
        return
    ca = tls.ca
    check_all(
        lambda: _show(_with_profile(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)), tls),
        lambda: None if ca is None else trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ca, "node.tls.ca"),
    )
    end = _end_of_validity(tls)
    if end - now < _SOON:
        log.warning("certificate_ends_soon", certificate=str(tls.certificate), at=end.isoformat())


def sha256(connection: object) -> str:
    """Return the SHA-256 of the certificate that the other side has shown, in hex; empty: it has shown none."""
    if not isinstance(connection, ssl.SSLSocket):
        return ""
    certificate = connection.getpeercert(binary_form=True)
    return hashlib.sha256(certificate).hexdigest() if certificate else ""


def reason(error: OSError) -> str:
    """Return in words why TLS failed."""
    if isinstance(error, TimeoutError):
        return "the other side did not finish its handshake in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of the other side is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return "the other side hung up"
    if isinstance(error, ssl.SSLError) and error.reason:
        return _IN_WORDS.get(error.reason, error.reason.lower().replace("_", " "))
    return str(error.strerror or error)


def _with_profile(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join((*SUITES, _STRENGTH)))
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    return context


def _show(context: ssl.SSLContext, tls: Tls) -> None:
    _readable(tls.certificate, "node.tls.certificate")
    _readable(tls.key, "node.tls.key")
    trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls.certificate, "node.tls.certificate")
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_NO_PASSWORD)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(
                f"node.tls.key: {tls.key} is not the key of {tls.certificate}; name the pair that belongs together"
            ) from error
        if error.reason is None:
            raise ConfigurationError(f"node.tls.key: {tls.key} holds no PEM key without a password") from error
        raise ConfigurationError(
            f"node.tls.certificate: {tls.certificate} cannot be used: {reason(error)}; make a new one"
        ) from error


def trust(context: ssl.SSLContext, path: Path, key: str) -> None:
    """Let a context trust the authorities of a file.

    Raises:
        ConfigurationError: the file, the value of `key`, cannot be used.
    """
    _readable(path, key)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigurationError(f"{key}: {path} holds no certificate in PEM form") from error


def _readable(path: Path, key: str) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigurationError(f"{key}: {path} cannot be read: {error.strerror}") from error


def _end_of_validity(tls: Tls) -> datetime:
    """Return when the node's certificate ends.

    It is shown in memory to a client that trusts it alone: so OpenSSL itself says whether peers may take it.
    """
    server = _with_profile(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    _show(server, tls)
    client = _with_profile(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trust(client, tls.certificate, "node.tls.certificate")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    try:
        while not all([_has_shaken_hands(end) for end in ends]):
            pass
    except ssl.SSLError as error:
        why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else reason(error)
        raise ConfigurationError(
            f"node.tls.certificate: {tls.certificate} cannot be used: {why}; peers would refuse it, get a new one"
        ) from error
    shown = ends[0].getpeercert()
    assert shown is not None  # it was verified
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)


def _has_shaken_hands(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
