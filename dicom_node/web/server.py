"""uvicorn in a thread of the clock's process."""

import threading

import uvicorn
from fastapi import FastAPI


class WebServer:
    """Serves the application until stopped."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        """Take the address; nothing listens yet."""
        config = uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="web", daemon=True)

    def start(self) -> None:
        """Listen."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is being answered and close."""
        self._server.should_exit = True
        self._thread.join(10)
