"""The metrics of a worker on a machine of its own, over HTTP; those of the worker that `dicom-node serve` starts are on
the page."""

import hmac
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from dicom_node.metrics.shared import FOLDER_VARIABLE, SharedCollector, counting_folder
from dicom_node.settings import Settings, Worker

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = structlog.get_logger(__name__)

_REFUSAL = b"a bearer token is needed\n"


@contextmanager
def counts(settings: Settings) -> Iterator[Path | None]:
    """Give the folder that the processes of this worker count in until the block ends: the node's if the node started
    it, one of its own, which is served, if the configuration says where; else None."""
    worker = settings.worker
    if folder := os.environ.get(FOLDER_VARIABLE):
        yield Path(folder)
    elif worker.metrics_port == 0:
        yield None
    else:
        owner, token = f"worker {worker.metrics_host} {worker.metrics_port}", settings.web.token.get_secret_value()
        with counting_folder(owner) as own, _serving(worker, token, own):
            yield own


@contextmanager
def _serving(worker: Worker, token: str, folder: Path | None) -> Iterator[None]:
    registry = CollectorRegistry()
    if folder is not None:
        registry.register(SharedCollector(folder))
    app = _behind(token, make_wsgi_app(registry))
    try:
        server = make_server(worker.metrics_host, worker.metrics_port, app, _server(worker.metrics_host), _Handler)
    except OSError as error:  # no reason to analyse nothing
        address = f"{worker.metrics_host}:{worker.metrics_port}"
        log.error("worker_metrics_not_served", address=address, reason=error.strerror)
        yield
        return
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _behind(token: str, app: "WSGIApplication") -> "WSGIApplication":
    """Return the application for those who show the token; for all, if there is none."""
    wanted = f"Bearer {token}".encode()

    def guarded(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        shown = str(environ.get("HTTP_AUTHORIZATION", "")).encode("latin-1", "replace")
        if token and not hmac.compare_digest(shown, wanted):
            start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
            return [_REFUSAL]
        return app(environ, start_response)

    return guarded


def _server(host: str) -> type[ThreadingWSGIServer]:
    class Server(ThreadingWSGIServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    return Server


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds that a client may be silent

    def log_message(self, *_: Any) -> None:
        """Write no line for each scrape."""
