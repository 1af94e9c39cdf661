"""PostgreSQL as a real peer of the tests: its own folder, its own socket, stopped by its own handle."""

import getpass
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.binaries import require_binary

_ACCOUNT = "postgres"
_START_SECONDS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresServer:
    """A running server that holds nothing of value."""

    folder: Path
    """Where its socket is."""

    def new_database(self, template: str = "template0") -> str:
        """Return the SQLAlchemy URL of a new database, made as a copy of `template`."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(host=str(self.folder), user=_ACCOUNT, dbname="postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://{_ACCOUNT}@/{database}?host={self.folder}"


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Start a server and stop it in the end; skips (in CI: fails) the test where PostgreSQL is not installed."""
    folders = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    initdb = require_binary("initdb", *folders)
    postgres = require_binary("postgres", *folders)
    # The server refuses to run as root; subprocess changes the account, so that our handle is the server itself.
    account = _ACCOUNT if os.geteuid() == 0 else getpass.getuser()
    # Not below pytest's folders: those are root's alone, and a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="echo-pg-", dir="/tmp"))
    try:
        entry = pwd.getpwnam(account)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        data = folder / "data"
        subprocess.run(
            [initdb, "-D", data, "-U", _ACCOUNT, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=folder,
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=[] if os.geteuid() == 0 else None,
        )
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [postgres, "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
                stdout=log,
                stderr=log,
                cwd=folder,
                user=entry.pw_uid,
                group=entry.pw_gid,
                extra_groups=[] if os.geteuid() == 0 else None,
            )
        try:
            _wait_until_it_answers(folder, server)
            yield PostgresServer(folder=folder)
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown
            server.wait(timeout=_START_SECONDS)
    finally:
        shutil.rmtree(folder)


def _wait_until_it_answers(folder: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(host=str(folder), user=_ACCOUNT, dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
