"""Connections that ask for nothing, or too slowly; and those over HTTPS."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from dicom_node.errors import ConfigurationError
from dicom_node.ledger.engine import Sessions
from dicom_node.store import InstanceStore
from dicom_node.web.certificate import check_certificate
from dicom_node.web.connections import Limits
from tests.binaries import require_binary
from tests.node.sites import TOKEN, Serve, Site, page_settings, serving_page

ASK = b"GET /style.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    """SQLite alone: nothing is looked at in it."""
    return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"


@pytest.fixture
def serve(sessions: Sessions, store: InstanceStore, tmp_path: Path) -> Iterator[Serve]:
    """Start the page with these limits and settings."""
    with ExitStack() as running:

        def start(limits: Limits | None = None, **web: Any) -> Site:
            settings = page_settings(tmp_path / "data", "redis://127.0.0.1:1/0", **web)
            return running.enter_context(serving_page(settings, sessions, store, 1, limits=limits))

        yield start


def is_closed(connection: socket.socket) -> bool:
    """Return whether the other end closes the connection within the socket's time-out."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def is_open(connection: socket.socket) -> bool:
    """Return whether the connection still gives an answer."""
    try:
        connection.sendall(ASK)
        return connection.recv(65536).startswith(b"HTTP/1.1 200")
    except ConnectionError:
        return False


def test_two_hundred_idle_connections_keep_nobody_out(serve: Serve) -> None:
    """Twice as many as the page holds."""
    site = serve(Limits(max_connections=100), token=TOKEN)
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(site.connect())
        answer = site.client.get("/healthz")

    assert answer.status_code == 503  # no broker here
    assert answer.json() == {"status": "failing"}


def test_the_body_of_an_answer_waits_for_no_acknowledgement_of_its_head(serve: Serve) -> None:
    site = serve()
    with site.connect() as connection:
        assert is_open(connection)
        every = psutil.Process().net_connections("tcp")
        [accepted] = [one for one in every if one.laddr.port == site.port and one.raddr == connection.getsockname()]
        with socket.socket(fileno=os.dup(accepted.fd)) as server_side:
            assert server_side.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_with_more_connections_than_the_page_holds_the_idlest_makes_room(serve: Serve) -> None:
    site = serve(Limits(request_seconds=600, max_connections=20))
    with ExitStack() as stack:
        first, *others = [stack.enter_context(site.connect()) for _ in range(20)]
        answer = site.client.get("/style.css")

        assert answer.status_code == 200
        assert is_closed(first)
        assert all(is_open(other) for other in others)


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\ntoken=",
        ASK,
        ASK + b"GET / HTTP/1.1\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "nothing after an answer", "half a head after an answer"],
)
def test_who_does_not_ask_in_time_is_cut_off(serve: Serve, begun: bytes) -> None:
    site = serve(Limits(request_seconds=0.5, max_connections=20))
    with site.connect() as connection:
        connection.sendall(begun)

        assert is_closed(connection)


def test_who_asks_byte_by_byte_is_cut_off_too(serve: Serve) -> None:
    site = serve(Limits(request_seconds=0.5, max_connections=20))
    with site.connect() as connection:
        connection.sendall(ASK[:-2] + b"X: ")
        connection.settimeout(0.02)
        number = 0
        while not drips(connection):
            number += 1
            assert number < 3000  # a minute


def drips(connection: socket.socket) -> bool:
    """Send one byte more; return whether the other end has had enough."""
    try:
        connection.sendall(b"x")
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    paths = (folder / "web.pem", folder / "web.key")
    make_certificate(*paths)
    return paths


def make_certificate(certificate: Path, key: Path, *protection: str) -> None:
    """Let openssl make a certificate for 127.0.0.1 that signs itself."""
    subprocess.run(
        [require_binary("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         *(protection or ("-noenc",)), "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )  # fmt: skip


def test_over_https_the_cookie_and_the_browser_stay_there(serve: Serve, certificate: tuple[Path, Path]) -> None:
    site = serve(token=TOKEN, certificate=str(certificate[0]), key=str(certificate[1]))
    login = site.log_in()
    page = site.client.get("/")

    assert site.origin.startswith("https://")
    assert login.headers["Set-Cookie"].startswith("__Host-echo-node=")
    assert login.headers["Set-Cookie"].endswith("; Secure")
    assert page.status_code == 200
    assert page.headers["Strict-Transport-Security"] == "max-age=31536000"


def test_over_https_alone_means_that_plain_http_is_not_answered(serve: Serve, certificate: tuple[Path, Path]) -> None:
    site = serve(token=TOKEN, certificate=str(certificate[0]), key=str(certificate[1]))
    with site.connect() as connection:
        connection.sendall(ASK)

        assert is_closed(connection)


def test_behind_a_proxy_that_speaks_https_the_cookie_stays_there(serve: Serve) -> None:
    site = serve(token=TOKEN, proxies=["127.0.0.1"])
    told = {"X-Forwarded-Proto": "https", "Origin": site.origin.replace("http:", "https:")}
    cookie = site.log_in(**told).headers["Set-Cookie"]

    assert cookie.startswith("__Host-echo-node=")
    assert cookie.endswith("; Secure")


@pytest.mark.parametrize("fault", ["missing", "swapped", "encrypted", "other"])
def test_a_certificate_that_cannot_be_used_is_named(
    tmp_path: Path, certificate: tuple[Path, Path], fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    files = certificate
    if fault == "missing":
        files = (certificate[0], tmp_path / "gone.key")
    elif fault == "swapped":
        files = (certificate[1], certificate[0])
    else:
        files = (certificate[0], tmp_path / "web.key")
        protection = ("-passout", "pass:hushhush") if fault == "encrypted" else ("-noenc",)
        make_certificate(tmp_path / "web.pem", files[1], *protection)
        files = (tmp_path / "web.pem", files[1]) if fault == "encrypted" else files
    web = page_settings(tmp_path, certificate=str(files[0]), key=str(files[1])).web

    with pytest.raises(ConfigurationError, match=r"^web\.(certificate|key)"):
        check_certificate(web)
    assert capfd.readouterr() == ("", "")


def test_the_right_certificate_is_right(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    check_certificate(page_settings(tmp_path, certificate=str(certificate[0]), key=str(certificate[1])).web)
    check_certificate(page_settings(tmp_path).web)
