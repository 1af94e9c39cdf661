"""uvicorn in a thread of the clock's process."""

import asyncio
import socket
import threading
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from dicom_node.settings import Web
from dicom_node.web.connections import Limits, bounded

_HANDSHAKE_SECONDS = 10.0


class WebServer:
    """Serves the application until stopped."""

    def __init__(self, app: ASGIApp, listening: socket.socket, web: Web, limits: Limits | None = None) -> None:
        """Take a socket that listens already: who opened it could say that the port is taken."""
        config = uvicorn.Config(
            app,
            http=bounded(limits or Limits()),
            h11_max_incomplete_event_size=16 * 1024,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # who sends what is no HTTP must not fill the log
            access_log=False,
            server_header=False,
            proxy_headers=bool(web.proxies),
            forwarded_allow_ips=[str(network) for network in web.proxies],
            timeout_keep_alive=5,
            timeout_graceful_shutdown=3,
            ssl_certfile=web.certificate,
            ssl_keyfile=web.key,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="web", daemon=True)

    def start(self) -> None:
        """Answer."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is being answered and close."""
        self._server.should_exit = True
        self._thread.join(5)


class _Server(uvicorn.Server):
    """One that does not wait a minute for a TLS handshake, as asyncio does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        if self.config.is_ssl:
            create = loop.create_server  # uvicorn hands nothing of this on
            loop.create_server = partial(create, ssl_handshake_timeout=_HANDSHAKE_SECONDS)  # type: ignore[method-assign]
        await super().startup(sockets)
