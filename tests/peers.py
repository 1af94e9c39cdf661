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
from typing import Any

import psutil
import psycopg
from sqlalchemy import make_url

from tests.binaries import require_binary
from tests.system.machines import Machine

_ACCOUNT = "postgres"
_START_SECONDS = 30
# A log of two segments: by default it grows to a gigabyte, on every core of a test run.
_OPTIONS = ("-c", "fsync=off", "-c", "min_wal_size=32MB", "-c", "max_wal_size=48MB")


@dataclass(kw_only=True)
class PostgresServer:
    """A server that holds nothing of value."""

    folder: Path
    """Where its socket is."""
    binary: str
    account: pwd.struct_passwd
    machine: Machine | None = None
    """Where it runs and is called; None: here, on a socket in its folder."""
    process: subprocess.Popen[bytes] | None = None

    def new_database(self, template: str = "template0") -> str:
        """Return the SQLAlchemy URL of a new database, made as a copy of `template`."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(host=str(self.folder), user=_ACCOUNT, dbname="postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Remove the database that `new_database` gave `url` for, whoever is still connected to it."""
        name = make_url(url).database
        with psycopg.connect(host=str(self.folder), user=_ACCOUNT, dbname="postgres", autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL of a database."""
        host = self.folder if self.machine is None else self.machine.address
        return f"postgresql+psycopg://{_ACCOUNT}@/{database}?host={host}"

    def start(self) -> None:
        """Run until stopped; it answers when this returns."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*_prefix(self.machine, self.account), *self._command()],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **(_as(self.account) if self.machine is None else {}),
            )
        _wait_until_it_answers(self.folder, self.process)

    def _command(self) -> list[str]:
        address = "" if self.machine is None else self.machine.address
        options = ("-c", f"listen_addresses={address}", *_OPTIONS)
        return [self.binary, "-D", str(self.folder / "data"), "-k", str(self.folder), *options]

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT is its fast shutdown, SIGQUIT its immediate one, as after a crash."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(timeout=_START_SECONDS)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Let it take connections and questions, and answer none, until the block ends."""
        assert self.process is not None
        server = psutil.Process(self.process.pid)
        every = [server, *server.children(recursive=True)]
        for one in every:
            one.suspend()
        try:
            yield
        finally:
            for one in every:
                one.resume()


@contextmanager
def running_postgres(machine: Machine | None = None) -> Iterator[PostgresServer]:
    """Start a server and stop it in the end; skips (in CI: fails) the test where PostgreSQL is not installed."""
    folders = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    initdb = require_binary("initdb", *folders)
    postgres = require_binary("postgres", *folders)
    # The server refuses to run as root; subprocess changes the account, so that our handle is the server itself.
    account = pwd.getpwnam(_ACCOUNT if os.geteuid() == 0 else getpass.getuser())
    # Not below pytest's folders: those are root's alone, and a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="echo-pg-", dir="/tmp"))
    server = PostgresServer(folder=folder, binary=postgres, account=account, machine=machine)
    try:
        os.chown(folder, account.pw_uid, account.pw_gid)
        subprocess.run(
            [initdb, "-D", folder / "data", "-U", _ACCOUNT, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=folder,
            **_as(account),
        )
        with (folder / "data" / "pg_hba.conf").open("a") as who_may_come:
            who_may_come.write("host all all samenet trust\n")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _prefix(machine: Machine | None, account: pwd.struct_passwd) -> tuple[str, ...]:
    return () if machine is None else machine.as_user(account.pw_uid, account.pw_gid)


def _as(account: pwd.struct_passwd) -> dict[str, Any]:
    groups = [] if os.geteuid() == 0 else None
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}


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
