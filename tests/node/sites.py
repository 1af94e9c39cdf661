"""The page of a node, served over a real socket for a test."""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from dicom_node.acceptor import listen
from dicom_node.ledger.engine import Sessions
from dicom_node.settings import Settings, settings_from
from dicom_node.store import InstanceStore
from dicom_node.web.app import make_app
from dicom_node.web.connections import Limits
from dicom_node.web.guard import OnLogin, log_login
from dicom_node.web.health import Pulse
from dicom_node.web.server import WebServer

TOKEN = "correct-horse-battery-staple"

Serve = Callable[..., "Site"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A running page."""

    client: httpx.Client
    port: int
    rung: list[int] = field(default_factory=list)
    """The studies that a worker was called for."""

    @property
    def origin(self) -> str:
        """Return how a browser names it."""
        return str(self.client.base_url).rstrip("/")

    def connect(self) -> socket.socket:
        """Return a new connection to it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def log_in(self, token: str = TOKEN, **headers: str) -> httpx.Response:
        """Send the form of the login as a browser does; the client keeps the cookie."""
        return self.client.post("/login", data={"token": token}, headers={"Origin": self.origin, **headers})


def page_settings(data_dir: Path, broker_url: str = "", *, min_free_bytes: int = 0, **web: Any) -> Settings:
    """Return settings of a node with these of its page."""
    return settings_from(
        {
            "node": {"data_dir": str(data_dir), "min_free_bytes": min_free_bytes},
            "broker": {"url": broker_url},
            "web": web,
        }
    )


@contextmanager
def serving_page(
    settings: Settings,
    sessions: Sessions,
    store: InstanceStore,
    node_port: int,
    *,
    pulse: Pulse | None = None,
    limits: Limits | None = None,
    on_login: OnLogin = log_login,
) -> Iterator[Site]:
    """Serve the page until the block ends."""
    listening = listen(settings.web.host, 0)
    port = listening.getsockname()[1]
    rung: list[int] = []
    app = make_app(settings, sessions, store, node_port, pulse=pulse or Pulse(), ring=rung.append, on_login=on_login)
    server = WebServer(app, listening, settings.web, limits)
    scheme, trust = "http", ssl.create_default_context()
    if settings.web.certificate is not None:
        scheme, trust = "https", ssl.create_default_context(cafile=settings.web.certificate)
    with httpx.Client(base_url=f"{scheme}://127.0.0.1:{port}", timeout=20, verify=trust) as client:
        server.start()
        yield Site(client=client, port=port, rung=rung)
    server.stop()
