"""uvicorn in a thread of the clock's process."""

import socket
import threading

import uvicorn
from fastapi import FastAPI


class WebServer:
    """Serves the application until stopped."""

    def __init__(self, app: FastAPI, listening: socket.socket) -> None:
        """Take a socket that listens already: who opened it could say that the port is taken."""
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=3)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="web", daemon=True)

    def start(self) -> None:
        """Answer."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is being answered and close."""
        self._server.should_exit = True
        self._thread.join(5)
